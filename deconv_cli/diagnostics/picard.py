"""The discrete Picard condition: where the data sink into their noise before the singular values do.

Hansen, "The discrete Picard condition for discrete ill-posed problems", BIT 30, 1990, section 3.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.hann_window import apply_hann_window
from deconv_cli.diagnostics.torus_modes import TorusModes
from deconv_cli.operators import synchronize

# The floor is read off the modes with the smallest singular values: this part of all.
FLOOR_SHARE = 0.1
# Steps of the curve that is kept.
MAX_STEPS = 400


@dataclass(frozen=True)
class Picard:
    """The data along each mode, sorted by singular value.

    Attributes:
        sigma: singular values, descending, geometric means over equally many modes a step.
        coefficients: median of |uᴴy| over the same, in the units of the samples; white noise of standard deviation s
            gives 0.83 s.
        noise_floor: median of |uᴴy| over the tenth of the modes with the smallest singular values.
        n_recoverable: how many of `n_modes` are so far above the floor that noise alone would lift none there.
        n_modes: how many modes there are, for each plane of the data.
    """

    sigma: tuple[float, ...]
    coefficients: tuple[float, ...]
    noise_floor: float
    n_recoverable: int
    n_modes: int


def measure_picard(modes: TorusModes, data: Tensor, *, is_periodic: bool) -> Picard:
    """Compare data with the singular values of the kernel.

    Noise alone has sizes |uᴴy| above t times their median with a probability of 2^(−t²). A mode is recoverable if it is
    above the floor by t² = log₂ n, which less than about one of n modes of pure noise reaches.

    Args:
        modes: of the kernel on the torus of the data.
        data: y, shape `(*batch, C_out, N1, N2, ...)`, in the units of the samples.
        is_periodic: the data go on around the torus; if not, they are faded out towards the edges first, since a jump
            between opposite edges would look like noise.
    """
    n_axes = len(modes.torus)
    images = data.reshape(-1, *data.shape[-n_axes - 1 :])
    coefficients = modes.of_outputs(modes.transformed(images if is_periodic else apply_hann_window(images, n_axes)))
    sigma = modes.sigma.flatten()
    weights = modes.weights[..., None].expand_as(modes.sigma).flatten()
    order = sigma.argsort(descending=True, stable=True)
    sigma, weights, by_plane = sigma[order], weights[order], coefficients.abs().flatten(1)[:, order]
    n_last = max(round(FLOOR_SHARE * len(sigma)), 1)
    floor = synchronize.as_number(by_plane[:, -n_last:].median())
    limit = floor * math.sqrt(math.log2(max(by_plane.numel(), 2)))
    above = (weights * (by_plane > limit)).sum() / len(by_plane)
    n_steps = min(MAX_STEPS, len(sigma))
    bounds = [round(len(sigma) * step / n_steps) for step in range(n_steps + 1)]
    pieces = list(itertools.pairwise(bounds))
    tiny = torch.finfo(sigma.dtype).tiny
    means = torch.stack([sigma[a:b].clamp_min(tiny).log().mean().exp() for a, b in pieces])
    medians = torch.stack([by_plane[:, a:b].median() for a, b in pieces])
    return Picard(
        sigma=tuple(synchronize.as_numbers(means)),
        coefficients=tuple(synchronize.as_numbers(medians)),
        noise_floor=floor,
        n_recoverable=round(synchronize.as_number(above)),
        n_modes=round(synchronize.as_number(weights.sum())),
    )
