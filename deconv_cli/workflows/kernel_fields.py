"""Kernels that vary over the frame: settings they refuse, and λ from pieces of the data.

Measured on 160 × 160 pixels of five photographs, strokes and Gaussians at nine places, noise of 0.7 and 4: the median
of the λ of the places costs 1 % of the least error, and 13 % at most; that of the middle kernel on all data 134 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.axes import crop
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.vocabulary import Size

MAX_PLACES = 3
"""Largest number of places along each axis at which λ is chosen."""
WINDOW = 0.25
"""Size of a piece of the data, in the distance between the neighbors of its place: there its kernel holds."""
MIN_SIDE, MIN_KERNELS = 32, 3
"""Least samples of a piece along each axis, and least multiple of the kernel."""


def check_settings_of_field(settings: ReconstructionSettings) -> None:
    """Refuse, by `UsageError`, to predict the error."""
    if settings.predict:
        raise UsageError(
            "the error is predicted, and compared with a truth, only for a single kernel, but this one varies over "
            "the frame; leave that out, or take the kernel of one place."
        )


def choose_lambda_of_field(
    kernel: Kernel,
    data: Tensor,
    settings: ResolvedSettings,
    choose: Callable[[Tensor, Kernel, ResolvedSettings, Tensor | None], LambdaChoice],
    is_clipped: Tensor | None = None,
) -> LambdaChoice:
    """Choose λ at several places, each from the data around it, and take the median.

    The data have the shape `(C, H, W)` or `(B, C, H, W)`, as `is_clipped` has, which says which are lower bounds.
    `choose` chooses λ for data of a single kernel.
    """
    field = kernel.field
    assert field is not None
    if field.grid == (1, 1):
        return choose(data, replace(kernel, field=None), settings, is_clipped)
    geometry = Geometry.of_output(tuple(data.shape[-2:]), kernel.size, settings.padding)
    largest = max(kernel_spectrum(taps[None, None], geometry.image_size).sigma_max for taps in field.taps.flatten(0, 1))
    # A piece shows part of a larger scene, whatever lies outside the whole.
    settings = replace(settings, boundary="unknown")
    choices = []
    for i in _spread(field.grid[0]):
        for j in _spread(field.grid[1]):
            single = replace(kernel, taps=field.taps[i, j][None, None], field=None)
            start, size = _window(geometry, (i, j), (field.rows, field.columns))
            bounds = None if is_clipped is None else crop(is_clipped, start, size)
            found = choose(crop(data, start, size), single, settings, bounds)
            scale = kernel_spectrum(single.taps, size).sigma_max / largest
            choices.append(replace(found, lam=found.lam * scale**2))
    choices.sort(key=lambda choice: choice.lam)
    return replace(choices[(len(choices) - 1) // 2], n_places=len(choices))


def _spread(n: int) -> list[int]:
    """Number a few of `n` places, including the outermost."""
    if n <= MAX_PLACES:
        return list(range(n))
    return [round(step * (n - 1) / (MAX_PLACES - 1)) for step in range(MAX_PLACES)]


def _window(geometry: Geometry, place: tuple[int, int], places: tuple[tuple[float, ...], ...]) -> tuple[Size, Size]:
    """Lay a box of output pixels around a place: a quarter of the way to the next ones, or to the edge."""
    starts, sizes = [], []
    for axis, (at, centers) in enumerate(zip(place, places, strict=True)):
        n, length = geometry.output_size[axis], geometry.image_size[axis]
        shift = geometry.pads.before[axis] - (geometry.kernel_size[axis] - 1) / 2
        before, after = ([0.0, *centers][at], [*centers, 1.0][at + 1])
        least = max(MIN_SIDE, MIN_KERNELS * geometry.kernel_size[axis])
        size = min(n, max(least, round(WINDOW * (after - before) * length)))
        start = round(centers[at] * length + shift - size / 2)
        starts.append(min(max(start, 0), n - size))
        sizes.append(size)
    return tuple(starts), tuple(sizes)
