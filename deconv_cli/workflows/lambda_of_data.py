"""λ, or the weight of the total variation, chosen from data.

`diagnostics/lambda_choice.py` chooses λ of one kernel. A kernel that varies gives one λ at
each of several places; the median of those costs 1 % of the least error, and at most 13 %, where the middle kernel on
all data costs 134 % (160 × 160 pixels of five photographs, strokes and Gaussians at nine places, noise of 0.7 and 4).

For the total variation: if |∇x| is exponential, of the mean b, the likeliest image has the weight σ²/b. The quadratic
estimate gives b, with a λ that is chosen from the same data: with a smaller λ its edges are those of the noise. A
weight of σ removes all noise, and a larger one removes only edges, so w is σ²/(b + σ), with the σ of the noise that the
kernel passes. On JPEG files of 21 photographs this weight lost 0.4 dB to the best one in the median and 0.9 dB at
worst; one for the edges of an estimate with λ = 0.001 up to 9 dB; and one that leaves as much unexplained as the noise
up to 13 dB.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import LambdaChoice, choose_lambda
from deconv_cli.diagnostics.noise_level import estimate_noise
from deconv_cli.diagnostics.noise_spectrum import passed_sigma
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.total_variation import check_noise
from deconv_cli.vocabulary import LONG, ROUNDING_NOISE, LambdaRule, Size, format_size
from deconv_cli.workflows.resolve_settings import ResolvedInput

MAX_PLACES = 3
"""Places at most along each axis of a field."""
WINDOW = 0.25
"""Size of a piece of the data, relative to the distance between a place's neighbors, in which its kernel applies."""
MIN_SIDE, MIN_KERNELS = 32, 3
"""Least size of a piece, in samples, and relative to the kernel."""
_EDGES_TOLERANCE = 1e-3
"""Of the quadratic estimate whose edges give the weight of the total variation."""
EIGHT_BITS = 255
"""White of samples whose rounding and compression are a large part of the noise, and vary with the light."""


def settle_lambda(
    data: Tensor, kernel: Kernel, resolution: ResolvedInput, step: float, is_clipped: Tensor | None
) -> tuple[LambdaChoice | None, ResolvedInput]:
    """Choose λ from data without the bias if the resolution leaves it open; give the choice, and the resolution.

    `step` is the distance of neighboring values that a sample can have.
    """
    if not resolution.chooses_lambda:
        return None, resolution
    is_even = resolution.tone_curve is None or resolution.tone_curve.white > EIGHT_BITS
    settings, least_sigma = resolution.settings, step * ROUNDING_NOISE
    choice = choose_lambda_of_data(data.detach(), kernel, settings, least_sigma, is_clipped, is_noise_even=is_even)
    settings, reasons = replace(settings, lam=choice.lam), replace(resolution.reasons, lam=choice.reason)
    return choice, replace(resolution, settings=settings, reasons=reasons, chooses_lambda=False)


def choose_lambda_of_data(
    y: Tensor,
    kernel: Kernel,
    settings: ResolvedSettings,
    least_sigma: float,
    is_clipped: Tensor | None = None,
    *,
    is_noise_even: bool = True,
) -> LambdaChoice:
    """Choose λ, by the rule of the settings, whose noise is a model.

    The data `(*batch, C_out, *size)` have no bias and no graph; `is_clipped` marks samples that are only lower bounds,
    and `least_sigma` bounds an estimate of the noise, as rounding does. The noise is even if it is as large in dark
    places as in bright ones. A kernel that is larger than the data along every axis, or that of a layer with a stride,
    is a `UsageError`.
    """
    if kernel.field is not None:
        choose = partial(choose_lambda_of_data, least_sigma=least_sigma, is_noise_even=is_noise_even)
        if kernel.field.grid == (1, 1):
            return choose(y, replace(kernel, field=None), settings, is_clipped=is_clipped)
        geometry = Geometry.of_output(tuple(y.shape[-2:]), kernel.size, settings.padding)
        every = kernel.field.taps.flatten(0, 1)
        largest = max(kernel_spectrum(taps[None, None], geometry.image_size).sigma_max for taps in every)
        choices = []
        for single, start, size in _places(kernel, geometry):
            piece, bounds = (None if part is None else crop(part, start, size) for part in (y, is_clipped))
            assert piece is not None
            # A piece shows part of a larger scene, whatever lies outside the whole.
            found = choose(piece, single, replace(settings, boundary="unknown"), is_clipped=bounds)
            scale = kernel_spectrum(single.taps, size).sigma_max / largest
            choices.append(replace(found, lam=found.lam * scale**2))
        choices.sort(key=lambda choice: choice.lam)
        return replace(choices[(len(choices) - 1) // 2], n_places=len(choices))
    if not kernel.layer.is_plain:
        raise UsageError(
            "λ, or the weight of the total variation, is chosen from data only for plain convolutions, but this layer "
            f"has {kernel.layer.describe()}; give a number, such as lam=1e-3, or weight=0.1 for prior tv."
        )
    size = tuple(y.shape[-kernel.n_axes :])
    if all(n_taps > max(n, LONG) for n_taps, n in zip(kernel.size, size, strict=True)):
        raise UsageError(
            f"λ cannot be chosen from {format_size(size)} samples, since the kernel of {format_size(kernel.size)} "
            "taps is larger; give λ, such as lam=1e-3."
        )
    assert isinstance(settings.noise, NoiseModel)
    extension = PeriodicExtension(
        replace(kernel, taps=kernel.taps.detach()),
        size,
        boundary=settings.boundary,
        penalty=spaced_penalty(settings.penalty, settings.spacing),
        max_memory=settings.max_memory,
        noise=settings.noise,
    )
    rule = settings.lambda_rule or (LambdaRule.GCV if is_noise_even else None)
    return choose_lambda(extension, y, is_clipped, rule=rule, sigma=settings.noise_sigma, least_sigma=least_sigma)


def _places(kernel: Kernel, geometry: Geometry) -> list[tuple[Kernel, Size, Size]]:
    """List a few places of a field, the outermost among them.

    For each place: the kernel, and the start and size of the piece of data around it.
    """
    field, places = kernel.field, []
    assert field is not None
    numbers = [
        list(range(n)) if n <= MAX_PLACES else [round(step * (n - 1) / (MAX_PLACES - 1)) for step in range(MAX_PLACES)]
        for n in field.grid
    ]
    for i in numbers[0]:
        for j in numbers[1]:
            boxes = [_interval(geometry, axis, at) for axis, at in enumerate(((i, field.rows), (j, field.columns)))]
            starts, sizes = zip(*boxes, strict=True)
            places.append((replace(kernel, taps=field.taps[i, j][None, None], field=None), starts, sizes))
    return places


def _interval(geometry: Geometry, axis: int, place: tuple[int, tuple[float, ...]]) -> tuple[int, int]:
    """Return start and size of the outputs around a place: up to a quarter of the way to the next place or the edge."""
    at, centers = place
    n, length = geometry.output_size[axis], geometry.image_size[axis]
    shift = geometry.pads.before[axis] - (geometry.kernel_size[axis] - 1) / 2
    before, after = ([0.0, *centers][at], [*centers, 1.0][at + 1])
    least = max(MIN_SIDE, MIN_KERNELS * geometry.kernel_size[axis])
    size = min(n, max(least, round(WINDOW * (after - before) * length)))
    start = round(centers[at] * length + shift - size / 2)
    return min(max(start, 0), n - size), size


@torch.no_grad()
def find_variation_weight(y: Tensor, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> float:
    """Find w in ½‖Ax − y‖² + w·TV(x), one for all images of a batch, in the unit of the samples.

    The outputs `(*batch, C_out, *size)` have no bias and no graph; the noise of the settings is a model. Data without
    noise are a `UsageError`.
    """
    assert isinstance(settings.noise, NoiseModel)
    sigma = settings.noise.sigma or estimate_noise(y, kernel.n_axes)
    check_noise(y, sigma)
    noise = replace(settings.noise, sigma=sigma)
    passed = passed_sigma(noise, kernel.taps, y)
    quadratic = replace(
        settings,
        prior="quadratic",
        penalty="gradient",
        weight=None,
        iterations=None,
        tolerance=_EDGES_TOLERANCE,
        noise=noise,
    )
    lam = choose_lambda_of_data(y, kernel, quadratic, 0.0).lam
    inverse = PseudoInverse(kernel, image_size, replace(quadratic, lam=lam, noise=None))
    edges = inverse.problem.penalty_operator.forward(inverse.approximate(y))
    # Squared by hand: a norm along the first axis of space takes as long as twenty such sums.
    mean = edges.square().sum(dim=-inverse.n_dims - 1).sqrt().mean()
    return passed**2 / (synchronize.as_number(mean) + passed)
