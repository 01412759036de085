"""The noise of data: given by the settings, or estimated with the kernel, for a picture, a layer, or each channel.

Saturated samples are lower bounds. They leave creases in the data that no blur makes, which look like noise and become
rings, so a first estimate fills them in before the noise is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, product
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import choose_lambda
from deconv_cli.diagnostics.noise_level import LEAST_SIDE, estimate_noise
from deconv_cli.diagnostics.noise_spectrum import SpectrumBasis, fit_noise_spectrum
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension, affordable_window
from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.diagnostics.stored_samples import LEAST_SHARE, find_clipped
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.clipped import solve_clipped
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.tone_curve import white_of
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.resolve_settings import ResolvedInput

_BASES: WeakKeyDictionary[Estimator, SpectrumBasis] = WeakKeyDictionary()

Steps = tuple[float, ...]
"""Distance of neighboring values that a sample can have, one for all channels or for each; 0 for any value."""


def steps_of(y: Tensor, resolution: ResolvedInput, n_axes: int) -> Steps:
    """Return the distance of neighboring values that a stored sample of each channel can have."""
    curve, step = resolution.tone_curve, 0.0 if y.is_floating_point() else 1.0
    return (step,) if curve is None or step == 0 else tuple(step * slope for slope in curve.slopes(y, n_axes))


def settle_noise(
    data: Tensor, kernel: Kernel, resolution: ResolvedInput, is_clipped: Tensor | None
) -> tuple[Tensor, ResolvedInput]:
    """Find the noise of data without the bias, if λ or the prior needs it before the residual is tested.

    Gives the data, saturated samples filled in if they hid the noise, and the resolution with a model of the noise.
    """
    settings, is_photo = resolution.settings, resolution.settings.objective == "photo"
    if settings.is_linear and settings.noise == "auto" and not resolution.chooses_lambda:
        return data, resolution
    if is_clipped is not None and is_photo:
        filled = fill_tiles(data, kernel, is_clipped, settings.origin)
        share = synchronize.as_number((filled == data).double().mean())
    else:
        filled, share = fill_clipped(data, kernel, settings, is_clipped if settings.noise == "auto" else None)
    if is_photo and isinstance(settings.noise, tuple):
        return filled, resolution  # the prior takes them channel by channel
    found = find_noise(filled, kernel, settings, observed_share=share)
    return filled, replace(resolution, settings=replace(settings, noise=found))


def find_noise_of_picture(y: Tensor, kernels: Sequence[Kernel], resolution: ResolvedInput) -> tuple[NoiseModel, ...]:
    """Find the noise of each channel of a picture `(*batch, C, *size)`, with one kernel for all or for each."""
    filled, shares = zip(
        *(
            fill_clipped(channel, single, resolution.settings, find_bounds(channel, single, resolution))
            for channel, single in zip(y.split(1, kernels[0].channel_axis), cycle(kernels), strict=False)
        ),
        strict=True,
    )
    return find_noise_of_channels(filled, kernels, shares)


def find_noise(
    y: Tensor,
    kernel: Kernel,
    settings: ResolvedSettings,
    *,
    estimator: Estimator | None = None,
    observed_share: float = 1.0,
    faded: FadedImages | None = None,
) -> NoiseModel:
    """Find the kind of noise of data `(*batch, C_out, *size)` without the bias.

    A fit computes its basis once for each `estimator`, and uses `faded`, the data under a window, if given. A share
    `observed_share` of the data is noisy; the rest is predicted from an estimate. Several models for one problem are a
    `UsageError`.
    """
    found = settings.noise
    if isinstance(found, tuple):
        if len(found) > 1:
            raise UsageError(
                f"noise was given for {len(found)} channels, but these data are restored as a whole; give one noise "
                "model."
            )
        found = found[0]
    if found == "auto":
        piece = _middle(y, kernel)
        basis = _basis_of(piece, kernel, estimator)
        whole = faded if faded is not None and faded.images.shape == piece.shape else None
        found = fit_noise_spectrum(piece, basis, observed_share=observed_share, faded=whole)
    model = found if isinstance(found, NoiseModel) else NoiseModel()
    return model if settings.noise_sigma is None else replace(model, sigma=settings.noise_sigma, is_sigma_given=True)


def find_noise_of_channels(
    channels: Sequence[Tensor], kernels: Sequence[Kernel], observed_shares: Sequence[float] = (1.0,)
) -> tuple[NoiseModel, ...]:
    """Find the kind of noise of each channel `(*batch, 1, *size)` of a picture: colored in all if it is in one.

    Compression and smoothing act on all channels, but the spectrum of one channel may not show it. There are as many
    kernels, and shares of noisy data, as channels, or one.
    """
    pieces = [_middle(channel, kernels[c % len(kernels)]) for c, channel in enumerate(channels)]
    bases = [_basis_of(pieces[0], kernel) for kernel in kernels]
    fits = [
        partial(
            fit_noise_spectrum, piece, bases[c % len(bases)], observed_share=observed_shares[c % len(observed_shares)]
        )
        for c, piece in enumerate(pieces)
    ]
    found = [fit() for fit in fits]
    if all(model.is_white for model in found):
        return tuple(found)
    return tuple(fit(is_colored=True) if model.is_white else model for model, fit in zip(found, fits, strict=True))


def measure_noise_of_channels(y: Tensor, kernel: Kernel, settings: ResolvedSettings) -> tuple[NoiseModel, ...]:
    """Find the noise of each channel with its size; one model if the kernel mixes channels.

    The data have the shape `(*batch, C_out, *size)`, without the bias; tiny images have noise of size 0. A model that
    was given holds for every channel, and one for each channel as it is; other numbers of models are a `UsageError`. A
    size that was not given is estimated.
    """
    noise = settings.noise
    channels = y.split(1, kernel.channel_axis) if kernel.shared else (y,)
    if isinstance(noise, NoiseModel) and noise.source != "auto" and (noise.sigma or noise.spectrum):
        noise = (noise,)
    if not isinstance(noise, tuple):
        noise = find_noise_of_channels(channels, [kernel]) if kernel.shared else (find_noise(y, kernel, settings),)
    models = noise * len(channels) if len(noise) == 1 else noise
    if len(models) != len(channels):
        raise UsageError(f"noise was given for {len(models)} channels, but the data have {len(channels)}.")
    is_tiny = min(y.shape[-kernel.n_axes :]) < LEAST_SIDE
    known = [settings.noise_sigma or model.sigma or (0.0 if is_tiny else None) for model in models]
    return tuple(
        replace(model, sigma=estimate_noise(channel, kernel.n_axes) if sigma is None else sigma)
        for model, sigma, channel in zip(models, known, channels, strict=True)
    )


def _basis_of(piece: Tensor, kernel: Kernel, estimator: Estimator | None = None) -> SpectrumBasis:
    """Return the part of the fit that depends only on the kernel and the size, once for each estimator."""
    found = None if estimator is None else _BASES.get(estimator)
    if found is None:
        found = SpectrumBasis.of(kernel.taps, tuple(piece.shape[2:]))
        if estimator is not None:
            _BASES[estimator] = found
    return found


def _middle(y: Tensor, kernel: Kernel) -> Tensor:
    """Cut an affordable window out of the middle of data, arranged for the kernel: `(n, C_out, *window)`."""
    outputs = kernel.split(y.detach(), are_outputs=True)
    outputs = outputs.reshape(-1, *outputs.shape[kernel.channel_axis :])
    window = affordable_window(tuple(outputs.shape[2:]))
    start = tuple((n - kept) // 2 for n, kept in zip(outputs.shape[2:], window, strict=True))
    return crop(outputs, start, window)


FILLING_ACCURACY = 0.15
"""Change of λ between two rounds that may remain while samples are filled in before the noise is measured."""
TILE = 256
"""Samples along each axis that are filled at once."""
N_KERNELS = 2
"""Kernels around a tile that it is estimated with."""
LAMBDA, PENALTY = 1e-2, "gradient"
RULE = StoppingRule(tolerance=1e-4, max_iterations=10)
"""How tiles are estimated. Set on a bar of light in a photograph of scikit-image: penalty identity left it at white,
and more iterations made it a little brighter for as much more time."""


def find_bounds(data: Tensor, kernel: Kernel, resolution: ResolvedInput) -> Tensor | None:
    """Find full samples, which are lower bounds, if the estimate can use bounds; `None` if there are none."""
    return find_full(data, kernel, resolution) if resolution.settings.predicts else None


def find_full(data: Tensor, kernel: Kernel, resolution: ResolvedInput) -> Tensor | None:
    """Find full samples, whether or not the estimate can use bounds; `None` if there are none."""
    if resolution.ceiling is None or resolution.has_bounds is False or not kernel.layer.is_plain:
        return None
    if torch.is_grad_enabled() and (data.requires_grad or kernel.taps.requires_grad):
        return None
    least_share = 0.0 if resolution.has_bounds else LEAST_SHARE
    return find_clipped(data, resolution.ceiling, kernel.size, least_share)


def with_ceiling(resolution: ResolvedInput, y: Tensor, n_axes: int) -> ResolvedInput:
    """Set the value of a full sample, in light if light is restored; under white noise they are measurements."""
    is_white, curve = resolution.settings.noise in (None, "white"), resolution.tone_curve
    saturation = resolution.metadata.saturation
    if saturation is None or synchronize.as_number(y.max()) > saturation:  # which then belongs to the raw exposure
        saturation = white_of(y, resolution.metadata.sample_type)
    ceiling = None if is_white else saturation
    if ceiling is not None and curve is not None:
        white = torch.full((y.shape[-n_axes - 1], *[1] * n_axes), ceiling, dtype=torch.float64, device=y.device)
        ceiling = synchronize.as_number(curve.to_light(white, n_axes).min())
    return replace(resolution, ceiling=ceiling)


def fill_clipped(
    y: Tensor, kernel: Kernel, settings: ResolvedSettings, is_clipped: Tensor | None
) -> tuple[Tensor, float]:
    """Replace full samples that an estimate exceeds, with λ chosen as for white noise.

    The data `(*batch, C_out, *size)` have no bias and no graph; `is_clipped` has their shape. Gives the data, filled in
    their middle, and the share of the middle that did not change.
    """
    if is_clipped is None or kernel.field is not None:
        return y, 1.0
    extension = PeriodicExtension(
        kernel,
        tuple(y.shape[-kernel.n_axes :]),
        boundary="unknown",
        penalty=spaced_penalty(settings.penalty, settings.spacing),
        max_memory=settings.max_memory,
    )
    choose_lambda(extension, y, is_clipped, accuracy=FILLING_ACCURACY)
    return extension.fill(y)


def fill_tiles(y: Tensor, kernel: Kernel, is_clipped: Tensor, origin: Size = ()) -> Tensor:
    """Replace saturated samples of data `(*batch, C_out, H, W)` that a quadratic estimate exceeds, tile by tile.

    Tiles without saturated samples cost nothing. A block at `origin` of a picture has the tiles of the picture.
    """
    data, bounds = (kernel.split(part, are_outputs=True) for part in (y, is_clipped.to(y.dtype)))
    size, margins = data.shape[-2:], [N_KERNELS * n_taps for n_taps in kernel.size]
    sides = tuple(min(n, TILE + 2 * margin) for n, margin in zip(size, margins, strict=True))
    geometry = kernel.geometry_of_output(sides, "valid", None)
    operator = kernel.detached().convolution(geometry, "unknown")
    problem, filled = TikhonovProblem(operator, LAMBDA, penalty=PENALTY), data.clone()
    places = zip(origin or (0, 0), size, strict=True)
    for tile in product(*(range(-(place % TILE), n, TILE) for place, n in places)):
        corner = tuple(max(at, 0) for at in tile)
        extent = tuple(min(at + TILE, n) - first for at, first, n in zip(tile, corner, size, strict=True))
        if not synchronize.holds_anywhere(crop(bounds, corner, extent) > 0):
            continue
        axes = zip(tile, margins, size, sides, strict=True)
        start = tuple(max(0, min(at - margin, n - side)) for at, margin, n, side in axes)
        part, is_bound = crop(data, start, sides), crop(bounds, start, sides) > 0
        predicted = operator.forward(solve_clipped(problem, part, is_bound, RULE).value)
        found = torch.where(is_bound, part.maximum(predicted), part)
        inner = tuple(at - first for at, first in zip(corner, start, strict=True))
        crop(filled, corner, extent).copy_(crop(found, inner, extent))
    return kernel.join(filled)
