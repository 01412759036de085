"""Measure the residual of an estimate and test it against the noise; examine further what the kernel passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import (
    Conditioning,
    Widths,
    count_lost_directions,
    measure_conditioning,
    measure_resolution,
    recovered_share,
)
from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.noise_level import least_noise_level
from deconv_cli.diagnostics.residual import border_profile, summarize_residual
from deconv_cli.diagnostics.residual_tests import (
    EXCESS,
    ResidualTests,
    check_residual,
    measure_noise_ratio,
    measure_rise,
)
from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.diagnostics.torus_modes import InverseFilter, ModeBands, TorusModes, torus_modes
from deconv_cli.diagnostics.well_posedness import WellPosedness, assess
from deconv_cli.kernels.bead_psf import OF_POINTS, kurtosis
from deconv_cli.kernels.blind.blurred_picture import describe_alignment
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.measured_light import plateau_of
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop, space_axes
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.operators.phases import rearranged_taps, transposed_taps, whole_layer
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.richardson_lucy import RichardsonLucyEstimator
from deconv_cli.solvers.solution import Solution
from deconv_cli.tone_curve import WHITES, limits_of
from deconv_cli.vocabulary import InputKind, format_percent, format_size
from deconv_cli.workflows.apply_kernel import subtract_bias
from deconv_cli.workflows.arithmetic import caution_light
from deconv_cli.workflows.noise_of_data import find_full, find_noise
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolve_settings import ResolvedInput
from deconv_cli.workflows.trust import (
    CLEAR_RESIDUAL,
    FAR_ABOVE_NOISE,
    FAR_FOR_PHOTO,
    MAX_CLIPPED_SHARE,
    RISEN,
    Doubt,
    DoubtReason,
    is_flat,
    looks_rectified,
    measure_clipping,
    measure_scale,
)

LEAST_SIDE_OF_RISE = 96
"""Samples along each axis of a picture in which the power at low frequencies is measured well enough."""
_OF_BLUR = 0.9
"""Least sum of the taps of a blur, in parts of the sum of their sizes."""
_ASSESSED: WeakKeyDictionary[PseudoInverse, WellPosedness] = WeakKeyDictionary()
_BANDS: WeakKeyDictionary[PseudoInverse, ModeBands] = WeakKeyDictionary()


def measure(
    estimator: Estimator,
    data: Tensor,
    resolution: ResolvedInput,
    solution: Solution,
    tolerance: float,
    choice: LambdaChoice | None,
    step: float,
    bounds: Tensor | None,
) -> Reconstruction:
    """Measure the residual of an estimate, and test it if the resolution says to.

    The data `(*batch, C_out, *size)` have no bias; `step` is the distance of neighboring values that a sample can have,
    0 for any value; `bounds` says which samples were lower bounds, arranged for the estimator.
    """
    settings, operator, kernel = resolution.settings, estimator.operator, estimator.kernel
    detached = data.detach()  # the numbers of the report need no graph
    arranged = estimator.arrange(detached)
    unexplained = solution.residual
    if unexplained is None or unexplained.shape != arranged.shape:
        unexplained = arranged - operator.forward(solution.value.detach())
    filled, share = detached, 1.0
    if bounds is not None:
        exceeding = torch.where(bounds, unexplained.clamp_max(0), 0)
        unexplained = unexplained - exceeding
        filled, share = kernel.join(arranged - exceeding), synchronize.as_number((exceeding == 0).double().mean())
    residual, weight = kernel.join(unexplained), 0.0
    if settings.has_lambda:
        weight = settings.lam * estimator.spectrum.sigma_max**2
    if isinstance(estimator, RichardsonLucyEstimator) and estimator.gain is not None:
        settings = replace(settings, gain=estimator.gain)
    summary = of_all = summarize_residual(residual, detached, kernel.n_axes)
    if resolution.measured is not None:
        left, measured = (crop(samples, *resolution.measured) for samples in (residual, detached))
        summary = summarize_residual(left, measured, kernel.n_axes)
    result = Reconstruction(
        image=estimator.frame(solution.value),
        solution=replace(solution, left_over=None),
        settings=settings,
        reasons=resolution.reasons,
        choice=estimator.choice,
        tolerance=tolerance,
        residual=summary,
        border=(),
        spectrum=estimator.spectrum,
        scale=measure_scale(
            operator.mean_square_gain,
            solution.value.detach(),
            detached,
            weight,
            of_all.absolute,
            is_rectified=settings.defaults is InputKind.TENSOR and looks_rectified(detached, kernel.n_axes),
        ),
        well_posedness=None,
        lambda_choice=choice,
        notes=(*resolution.notes, *_notes(estimator, settings, bounds)),
    )
    size = tuple(detached.shape[-kernel.n_axes :])
    if any(k > n for k, n in zip(kernel.size, size, strict=True)):
        larger = f"the kernel of {format_size(kernel.size)} taps is larger than the data of {format_size(size)}"
        result = replace(result, scale=replace(result.scale, larger_kernel=larger))
    if not resolution.is_tested:
        return result
    if settings.defaults is InputKind.TENSOR and kernel.taps.shape[:2] == (1, 1):
        sentences = _describe_range(result.image.detach(), detached, kernel.taps.detach())
        result = replace(result, notes=(*result.notes, *sentences))
    faded = FadedImages.of(arranged, kernel.n_axes)
    if not settings.predicts and (full := find_full(detached, kernel, resolution)) is not None:
        share_full = format_percent(synchronize.as_number(full.double().mean()))
        note = (
            f"{share_full} of the samples are saturated, but {settings.objective_name} treats them as measurements, so "
            "the result is wrong around them; the quadratic prior treats them as lower bounds"
        )
        result = replace(result, notes=(*result.notes, note))
    elif settings.stops_at_noise or settings.objective == "photo":
        result = replace(result, excess=_measure_excess(of_all.root_mean_square, faded, resolution))
    if settings.noise == "auto":
        whole = faded if bounds is None else None
        found = find_noise(filled, kernel, settings, estimator=estimator, observed_share=share, faded=whole)
        settings = replace(settings, noise=found)
    border, is_picture = border_profile(residual, kernel.size), settings.defaults is InputKind.PICTURE
    result = replace(result, settings=settings, border=border, well_posedness=_assess(estimator))
    if not isinstance(estimator, PseudoInverse) or kernel.field is not None:
        return result
    if not is_picture and settings.has_lambda:  # of a picture everything outside the frame is lost
        lost = count_lost_directions(estimator)
        result = replace(result, lost_directions=lost if lost.n_lost > 0 else None)
        if settings.lam == 0 and operator.is_layer and lost.n_lost == 0 and estimator.rank is None:
            result = replace(result, determined=recovered_share(estimator))
    if operator.is_layer:  # whose modes are no frequencies
        return result
    if is_picture or settings.predict:
        assert isinstance(settings.noise, NoiseModel)
        tests = check_residual(
            unexplained,
            faded,
            mode_bands_of(estimator),
            kernel_size=kernel.size,
            border=border,
            noise=settings.noise,
            least_noise=max(step, 0.0 if choice is None else choice.sigma),
            is_boundary_free=operator.boundary.is_unknown,
        )
        result = replace(result, residual_tests=tests)
        if is_picture and choice is not None and kernel.n_axes == 2 and min(size) >= LEAST_SIDE_OF_RISE:
            modes = mode_bands_of(estimator).modes
            if result.image.shape[-kernel.n_axes :] == size:
                result = replace(result, rise=measure_rise(result.image.detach(), faded, modes))
    model = settings.noise if isinstance(settings.noise, NoiseModel) else NoiseModel(settings.noise_sigma)
    ratio, drowns = measure_noise_ratio(unexplained, faded, mode_bands_of(estimator), solution.value.detach(), model)
    if choice is not None and not drowns:
        return replace(result, noise_between=ratio)
    return replace(result, noise_ratio=ratio)


def _describe_range(image: Tensor, data: Tensor, taps: Tensor) -> tuple[str, ...]:
    """Note an estimate that leaves the range of data under a blur, as of a picture whose border was another one."""
    if not synchronize.holds_everywhere(taps.sum().abs() >= _OF_BLUR * taps.abs().sum()):
        return ()
    low, high = map(synchronize.as_number, data.aminmax())
    share = measure_clipping(image, data, low, high, noise=0.0).extreme
    if share <= MAX_CLIPPED_SHARE:
        return ()
    return (
        f"{format_percent(share)} of the estimate lie far outside of {low:.3g} to {high:.3g}, the range of the data; "
        'if these are a picture, try defaults="picture"',
    )


def _measure_excess(rms: float, data: FadedImages, resolution: ResolvedInput) -> float | None:
    """Divide a residual by the noise in the data, if it is much larger, and no small part of the contrast.

    Samples of 8 bits may have been a JPEG, whose error is colored. Elsewhere a wrong kernel itself makes the noise look
    colored, and large.
    """
    if is_flat(data.images, 0.0):  # a blank picture shows no kernel
        return None
    level, noise, fitted = least_noise_level(data) or 0.0, resolution.settings.noise, None
    if isinstance(noise, NoiseModel) and (noise.is_sigma_given or resolution.ceiling == WHITES["uint8"]):
        fitted = noise.sigma
    contrast = synchronize.as_number(
        (data.images - data.images.mean(space_axes(data.n_axes), keepdim=True)).std(correction=0)
    )
    factor = FAR_FOR_PHOTO if resolution.settings.objective == "photo" else FAR_ABOVE_NOISE
    least = max(factor * level, EXCESS * (fitted or 0.0), CLEAR_RESIDUAL * contrast)
    return rms / level if level > 0 and rms > least else None


def _notes(estimator: Estimator, settings: ResolvedSettings, bounds: Tensor | None) -> tuple[str, ...]:
    """Note how many samples were lower bounds, whether a gain was not found, and which pixels a layer does not see."""
    notes: tuple[str, ...] = ()
    if bounds is not None:
        share = format_percent(synchronize.as_number(bounds.double().mean()))
        notes += (f"{share} of the samples are saturated and were treated as lower bounds",)
    if isinstance(estimator, RichardsonLucyEstimator) and settings.gain == "auto" and estimator.gain is None:
        notes += ("the data do not show a gain, so held-out samples stop the iteration; if you know the gain, give it",)
    if isinstance(estimator.operator, LayerConvolution):
        notes += describe_undetermined(estimator.operator)
    return notes


def _assess(estimator: Estimator) -> WellPosedness | None:
    """Assess the quadratic problem behind an estimate, if there is one; once for each inverse."""
    inverse = getattr(estimator, "inverse", estimator)
    if not isinstance(inverse, PseudoInverse) or inverse.kernel.field is not None or inverse.operator.is_layer:
        return None
    if inverse not in _ASSESSED:
        kernel, boundary, lam = inverse.operator.kernel, inverse.operator.boundary, inverse.problem.lam
        _ASSESSED[inverse] = assess(kernel, inverse.geometry, boundary, lam=lam, spectrum=inverse.spectrum)
    return _ASSESSED[inverse]


def examine_picture(
    result: Reconstruction, stored: Tensor, data: Tensor, kernel: Kernel, resolution: ResolvedInput
) -> Reconstruction:
    """Test the light, the range and the alignment of a picture; `data` are in light if the blur acted there."""
    curve, metadata = resolution.tone_curve, resolution.metadata
    if resolution.chooses_lambda and metadata.tone_curve is not None and metadata.convolution is None:
        light = caution_light(stored, kernel, metadata.tone_curve, is_light=curve is not None)
        result = replace(result, light_caution=light)
    limits = limits_of(stored, metadata.sample_type)
    if limits is not None:
        image, sigma = result.image.detach(), result.settings.noise_sigma
        clipping = measure_clipping(image, data, *limits, n_axes=kernel.n_axes, noise=sigma, kernel_size=kernel.size)
        result = replace(result, clipping=clipping)
    samples = data.detach() if data.is_floating_point() else data.double()
    result = replace(result, notes=(*result.notes, *_describe_levels(samples, resolution.ceiling, kernel.n_axes)))
    is_one = stored.ndim == kernel.n_axes + 1 or len(stored) == 1
    if resolution.tests_alignment and is_one and not result.is_off_at_frame:
        taps = kernel.taps[0, 0].detach().cpu()
        found, is_clear = describe_alignment(taps, stored, tone_curve=curve, jpeg_table=metadata.jpeg_table)
        if found and result.rises:
            result = replace(result, kernel_doubt=Doubt(DoubtReason.GIVEN_KERNEL, RISEN))
        elif is_clear:
            result = replace(result, kernel_doubt=Doubt(DoubtReason.GIVEN_KERNEL, found[0]))
            found = ()
        # Under a kernel of another size neither light is whiter for its own sake.
        caution = None if found or is_clear else result.light_caution
        result = replace(result, notes=(*result.notes, *found), light_caution=caution)
    return result


def _describe_levels(samples: Tensor, ceiling: float | None, n_axes: int) -> tuple[str, ...]:
    """Note a picture of two levels, and samples that are probably saturated below the `ceiling` of their type."""
    low, high = map(synchronize.as_number, samples.aminmax())
    notes = list[str]()
    if low < high and int(((samples > low) & (samples < high)).count_nonzero()) < 0.01 * samples.numel():
        notes.append("the picture has only two levels, so the blur of the scene is lost: give one with gray levels")
    is_below = ceiling is None or high < ceiling * (1 - 1e-6)
    if is_below and plateau_of(samples, n_axes) is not None and kurtosis(samples) > OF_POINTS:
        notes.append(
            f"many samples share the largest value, {high:g}: they are probably saturated, but were treated as "
            "measurements, so the result is probably wrong around them"
        )
    return tuple(notes)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The diagnosis of a restoration.

    Attributes:
        residual: y − Ax̂, shape `(*batch, C_out, *output_size)`, in the units of the samples.
        conditioning: what the kernel passes on the torus of the image, and how strongly noise is amplified.
        null_share_of_data: the part of the energy of the data, faded out unless they are periodic, that no image
            explains.
        null_share_of_estimate: the part of the energy of the estimate that the kernel removes.
        resolution: how wide a single bright pixel becomes; `None` where pixels are phases of different gains.
        tests: what the residual shows.
        channel: if channels were restored one by one, the one that was examined: the first with a fault, or the
            noisiest.
    """

    residual: Tensor
    conditioning: Conditioning
    null_share_of_data: float
    null_share_of_estimate: float
    resolution: Widths | None
    tests: ResidualTests
    channel: int | None = None


def diagnose(
    inverse: PseudoInverse, result: Reconstruction, y: Tensor, *, bias: Tensor | None = None, noise: float | None = None
) -> Diagnosis:
    """Examine the result of `reconstruct` for outputs `(C_out, *output_size)`, or a batch of them, with their bias.

    Singular values are those of the kernel on a torus, whatever the border, and at a part of the frequencies for
    photographs or many channels. For a layer they are those of one group (see `equivalent_convolution`). `noise` is the
    standard deviation of the noise in the data, if it is known.
    """
    problem, n_axes = inverse.problem, inverse.kernel.n_axes
    data = inverse.arrange(subtract_bias(y, bias, n_axes).detach())
    residual = data - problem.operator.forward(result.solution.value.detach())
    estimate = inverse.kernel.split(result.image.detach())
    taps, outputs, estimate, left, has_phases = equivalent_convolution(problem.operator, data, estimate, residual)
    image_size, data_size = (tuple(images.shape[-n_axes:]) for images in (estimate, outputs))
    as_filter = _as_filter(inverse)
    modes = torus_modes(taps, image_size)
    of_data = modes if data_size == image_size else torus_modes(taps, data_size)
    conditioning = measure_conditioning(modes, as_filter)
    is_on_torus = problem.operator.boundary.is_periodic and image_size == data_size

    def null_share(modes: TorusModes, images: Tensor, coefficients: Callable[[Tensor], Tensor]) -> float:
        spectrum = modes.transformed(images) if is_on_torus else FadedImages.of(images, n_axes).spectrum
        return modes.null_share(coefficients(spectrum), spectrum, conditioning.threshold)

    return Diagnosis(
        residual=inverse.kernel.join(residual),
        conditioning=conditioning,
        null_share_of_data=null_share(of_data, outputs, of_data.of_outputs),
        null_share_of_estimate=null_share(modes, estimate, modes.of_inputs),
        resolution=None if has_phases else measure_resolution(taps, image_size, as_filter),
        tests=result.residual_tests
        or check_residual(
            left,
            FadedImages.of(outputs, n_axes),
            ModeBands(of_data, as_filter),
            kernel_size=tuple(taps.shape[2:]),
            noise=NoiseModel(noise, is_sigma_given=noise is not None),
            is_boundary_free=problem.operator.boundary.is_unknown,
        ),
    )


def equivalent_convolution(
    operator: Convolution, data: Tensor, estimate: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """Give a convolution on a torus with its images; for a layer, one group with its phases as channels.

    That is the group with the largest residual. Gives the taps `(C_out, C_in, *k)` first, and last whether channels are
    phases of one image.
    """
    if not isinstance(operator, LayerConvolution):
        return operator.kernel, data, estimate, residual, False
    axes, options = operator.geometry.grid_axes, operator.options
    part, n_dims = whole_layer(axes), len(operator.input_shape)
    of_groups = [of.unflatten(-n_dims, (options.groups, -1)) for of in (data, residual, estimate)]
    squares = of_groups[1].square().movedim(-n_dims - 1, 0).flatten(1).sum(-1)
    group = synchronize.as_index(squares.argmax())
    outputs, left, images = (of.select(-n_dims - 1, group) for of in of_groups)
    taps = rearranged_taps(operator.kernel, axes, options.groups, on_torus=True)
    if options.transposed:
        taps, outputs, left = transposed_taps(taps), part.take(outputs), part.take(left)
    else:
        images = part.take(images)
    return taps[group], outputs, images, left, any(axis.stride > 1 for axis in axes)


def mode_bands_of(inverse: PseudoInverse) -> ModeBands:
    """Compute the modes of the kernel on the torus of the data, once for each inverse."""
    if inverse not in _BANDS:
        modes = torus_modes(inverse.problem.operator.kernel, inverse.geometry.output_size)
        _BANDS[inverse] = ModeBands(modes, _as_filter(inverse))
    return _BANDS[inverse]


def _as_filter(inverse: PseudoInverse) -> InverseFilter:
    problem = inverse.problem
    return InverseFilter(problem.weight, problem.penalty, default_rcond(problem.operator.kernel.dtype))


def describe_undetermined(operator: LayerConvolution) -> tuple[str, ...]:
    """Note the pixels of the image that no output of a layer depends on; `LostDirections` counts all that is lost."""
    in_frame = operator.crop_to_frame(operator.touched())
    n_unused = synchronize.as_index((~in_frame).sum())
    if not n_unused:
        return ()
    where = tuple(int(at) for at in (~in_frame).nonzero()[0])
    return (
        f"no output depends on {format_percent(n_unused / in_frame.numel(), 3)} of the pixels of the image, such as "
        f"{where}: the data do not determine them, and they are zero in the estimate",
    )
