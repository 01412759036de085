"""Measure what an estimate leaves unexplained, and test it against the noise."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import LostDirections, count_lost_directions
from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.residual import BorderBand, border_profile, summarize_residual
from deconv_cli.diagnostics.residual_tests import ResidualTests, measure_noise_ratio
from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.diagnostics.well_posedness import WellPosedness, assess
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import InputKind, format_percent
from deconv_cli.workflows.diagnose import bands_of, check_residual_of
from deconv_cli.workflows.find_noise import find_noise, model_of
from deconv_cli.workflows.layer_settings import describe_undetermined
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolution import Resolution
from deconv_cli.workflows.trust import measure_scale

_ASSESSED: WeakKeyDictionary[PseudoInverse, WellPosedness] = WeakKeyDictionary()


def measure(
    estimator: Estimator,
    data: Tensor,
    resolution: Resolution,
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
    summary = summarize_residual(residual, detached, kernel.n_axes)
    result = Reconstruction(
        image=estimator.frame(solution.value),
        solution=replace(solution, left_over=None),
        settings=settings,
        reasons=resolution.reasons,
        choice=estimator.choice,
        rcond=estimator.rcond,
        tolerance=tolerance,
        residual=summary,
        border=(),
        spectrum=estimator.spectrum,
        scale=measure_scale(operator.mean_square_gain, solution.value.detach(), detached, weight, summary.absolute),
        well_posedness=None,
        lambda_choice=choice,
        notes=(*resolution.notes, *_notes(estimator, settings, bounds)),
    )
    if not resolution.is_tested:
        return result
    faded = FadedImages.of(arranged, kernel.n_axes)
    if settings.noise == "auto":
        whole = faded if bounds is None else None
        found = find_noise(filled, kernel, settings, estimator=estimator, observed_share=share, faded=whole)
        settings = replace(settings, noise=found)
    border = border_profile(residual, kernel.size)
    least = max(step, 0.0 if choice is None else choice.sigma)
    return replace(
        result,
        settings=settings,
        border=border,
        well_posedness=_assess(estimator),
        lost_directions=_lost_directions(estimator, settings),
        residual_tests=_test(estimator, unexplained, faded, settings, border, least),
        noise_ratio=_noise_ratio(estimator, solution, unexplained, faded, settings),
    )


def _test(
    estimator: Estimator,
    unexplained: Tensor,
    faded: FadedImages,
    settings: ResolvedSettings,
    border: tuple[BorderBand, ...],
    least_noise: float,
) -> ResidualTests | None:
    """Test the residual of a linear estimate of a picture, or of a tensor whose error is predicted."""
    is_tested = settings.defaults is InputKind.PICTURE or settings.predict
    if not isinstance(estimator, PseudoInverse) or not _has_modes(estimator) or not is_tested:
        return None
    noise = model_of(settings)
    return check_residual_of(estimator, unexplained, faded, border=border, noise=noise, least_noise=least_noise)


def _lost_directions(estimator: Estimator, settings: ResolvedSettings) -> LostDirections | None:
    """Count the directions of its input that a layer loses; of a picture everything outside the frame is lost."""
    is_tensor = settings.defaults is InputKind.TENSOR and settings.has_lambda
    if not (isinstance(estimator, PseudoInverse) and is_tensor) or estimator.kernel.field is not None:
        return None
    found = count_lost_directions(estimator)
    return found if found.n_lost > 0 else None


def _noise_ratio(
    estimator: Estimator, solution: Solution, unexplained: Tensor, faded: FadedImages, settings: ResolvedSettings
) -> float | None:
    """Compare the noise with the contrast of the data if a linear estimate shows mostly noise."""
    if not isinstance(estimator, PseudoInverse) or not _has_modes(estimator):
        return None
    noise = settings.noise if isinstance(settings.noise, NoiseModel) else NoiseModel(settings.noise_sigma)
    return measure_noise_ratio(unexplained, faded, bands_of(estimator), solution.value.detach(), noise)


def _notes(estimator: Estimator, settings: ResolvedSettings, bounds: Tensor | None) -> tuple[str, ...]:
    """Note how many samples were lower bounds, and which pixels a layer does not see."""
    notes: tuple[str, ...] = ()
    if bounds is not None:
        share = format_percent(synchronize.as_number(bounds.double().mean()))
        notes += (f"{share} of the samples are saturated and were treated as lower bounds",)
    if isinstance(estimator.operator, LayerConvolution):
        notes += describe_undetermined(estimator.operator, settings.lam)
    return notes


def _has_modes(inverse: PseudoInverse) -> bool:
    """Return whether the kernel is the same everywhere and has no stride, so that frequencies are its modes."""
    return inverse.kernel.field is None and not inverse.operator.is_layer


def _assess(estimator: Estimator) -> WellPosedness | None:
    """Assess the quadratic problem behind an estimate, if there is one."""
    inverse = getattr(estimator, "inverse", estimator)
    if not isinstance(inverse, PseudoInverse) or inverse.kernel.field is not None or inverse.operator.is_layer:
        return None
    return assess_well_posedness(inverse)


def assess_well_posedness(inverse: PseudoInverse) -> WellPosedness:
    """Assess the problem that an inverse solves; once for each inverse, however many outputs it is applied to."""
    found = _ASSESSED.get(inverse)
    if found is None:
        problem = inverse.problem
        found = _ASSESSED[inverse] = assess(
            problem.operator.kernel,
            inverse.geometry,
            problem.operator.boundary,
            lam=problem.lam,
            penalty=problem.penalty,
            spectrum=inverse.spectrum,
        )
    return found
