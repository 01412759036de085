"""What the estimator makes of a single bright pixel: the resolution that is left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import estimator_gain
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.operators import synchronize
from deconv_cli.vocabulary import Size

# The response is local: a torus of this side holds all of it.
MAX_SIDE = 256
MAX_BLOCK_OPERATIONS = 1e8


@dataclass(frozen=True, eq=False)
class Resolution:
    """The point-spread function of blur and inverse together, (KᴴK + μ|l|²)⁻¹KᴴK, on a torus.

    Attributes:
        response: of each channel to itself, shape `(C_in, n1, n2)`, the origin in the middle.
        widths: full width at half of the maximum, in pixels, along rows' direction (down) and along columns' (across),
            for each channel; 1 is one pixel alone. `None` where it does not fall to a half.
    """

    response: Tensor
    widths: tuple[tuple[float | None, float | None], ...]

    @property
    def widest(self) -> float | None:
        """The largest width of all channels; `None` if one of them has none."""
        values = [width for pair in self.widths for width in pair]
        return None if None in values else max(width for width in values if width is not None)


def measure_resolution(taps: Tensor, image_size: Size, *, weight: float, penalty: str, rcond: float) -> Resolution:
    """Compute the response on the torus of the image, or on a smaller one that holds it all.

    Args:
        taps: shape `(C_out, C_in, kH, kW)`.
        image_size: height and width of the image.
        weight: μ = λσ²max.
        penalty: which L.
        rcond: for μ = 0, singular values up to this fraction of the largest count as zero.
    """
    side = _side(taps)
    torus = (min(image_size[0], side), min(image_size[1], side))
    modes = torus_modes(taps, torus)
    assert modes.is_complete
    threshold = rcond * synchronize.as_number(modes.sigma.max())
    kept = estimator_gain(modes, weight=weight, penalty=penalty, threshold=threshold) * modes.sigma
    squares = torch.view_as_real(modes.vh).square().sum(-1)
    transfer = (squares * kept[..., None]).sum(dim=-2).permute(2, 0, 1)
    response = torch.fft.irfft2(transfer.to(modes.vh.dtype), s=torus)
    lines = [(line[:, 0], line[0]) for line in response]
    widths = tuple((_width(down), _width(across)) for down, across in lines)
    return Resolution(torch.fft.fftshift(response, dim=(-2, -1)), widths)


def _side(taps: Tensor) -> int:
    """Pick the side of a torus whose frequencies can all be looked at."""
    n_outputs, n_inputs = taps.shape[:2]
    cost = 1 if n_outputs == n_inputs == 1 else max(n_outputs * n_inputs * min(n_outputs, n_inputs), 512)
    return min(MAX_SIDE, max(int(math.sqrt(MAX_BLOCK_OPERATIONS / cost)), 8))


def _width(line: Tensor) -> float | None:
    """Find twice the distance at which an even function, given from its peak on, falls to a half of it."""
    values = synchronize.as_numbers(line[: len(line) // 2 + 1])
    half = values[0] / 2
    for at in range(1, len(values)):
        if values[at] < half:
            return 2 * (at - 1 + (values[at - 1] - half) / (values[at - 1] - values[at]))
    return None
