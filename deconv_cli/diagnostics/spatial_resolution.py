"""What blur and inverse together make of a single bright pixel: the resolution that is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.inverse_filter import InverseFilter
from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes
from deconv_cli.vocabulary import Size

# The response is local: a torus of this side holds all of it.
MAX_SIDE = 256
MAX_BLOCK_OPERATIONS = 1e8


@dataclass(frozen=True, eq=False)
class Resolution:
    """The point-spread function of blur and inverse together, (KᴴK + μ|l|²)⁻¹KᴴK, on a torus.

    Attributes:
        response: of each channel to itself, shape `(C_in, n1, n2, ...)`, the origin in the middle.
        widths: full width at half of the maximum, in pixels, along each axis of space (down, across), for each channel;
            1 is one pixel alone. `None` where it does not fall to a half.
    """

    response: Tensor
    widths: tuple[tuple[float | None, ...], ...]

    @property
    def widest(self) -> float | None:
        """The largest width of all channels; `None` if one of them has none."""
        values = [width for of_channel in self.widths for width in of_channel]
        return None if None in values else max(width for width in values if width is not None)


def measure_resolution(taps: Tensor, image_size: Size, inverse: InverseFilter) -> Resolution:
    """Compute the response on the torus of the image, or on a smaller one that holds it all.

    Args:
        taps: shape `(C_out, C_in, *k)`.
        image_size: pixels along each axis of the image.
        inverse: what is applied to the blurred pixel.
    """
    side = _side(taps)
    torus = tuple(min(n, side) for n in image_size)
    modes = torus_modes(taps, torus, is_bounded=False)
    squares = squared_modulus(modes.vh)
    transfer = (squares * inverse.passed(modes)[..., None]).sum(dim=-2).movedim(-1, 0)
    axes = space_axes(len(torus))
    response = torch.fft.irfftn(transfer.to(modes.vh.dtype), s=torus, dim=axes)
    widths = tuple(tuple(_width(line) for line in _lines_from_origin(channel)) for channel in response)
    return Resolution(torch.fft.fftshift(response, dim=axes), widths)


def _side(taps: Tensor) -> int:
    """Pick the side of a torus whose frequencies can all be looked at."""
    n_outputs, n_inputs = taps.shape[:2]
    cost = 1 if n_outputs == n_inputs == 1 else max(n_outputs * n_inputs * min(n_outputs, n_inputs), 512)
    return min(MAX_SIDE, max(int((MAX_BLOCK_OPERATIONS / cost) ** (1 / (taps.ndim - 2))), 8))


def _lines_from_origin(channel: Tensor) -> list[Tensor]:
    """Cut out the line through the origin along each axis."""
    return [channel.movedim(axis, 0).reshape(length, -1)[:, 0] for axis, length in enumerate(channel.shape)]


def _width(line: Tensor) -> float | None:
    """Find twice the distance at which an even function, given from its peak on, falls to a half of it."""
    values = synchronize.as_numbers(line[: len(line) // 2 + 1])
    half = values[0] / 2
    for at in range(1, len(values)):
        if values[at] < half:
            return 2 * (at - 1 + (values[at - 1] - half) / (values[at - 1] - values[at]))
    return None
