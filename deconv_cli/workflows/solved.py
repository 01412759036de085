"""An estimate that has not been looked at yet, and what there is to be said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import LostDirections, count_lost_directions
from deconv_cli.diagnostics.hann_window import FadedImages
from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.residual import BorderBand, border_profile, summarize_residual
from deconv_cli.diagnostics.residual_tests import ResidualTests, measure_noise_ratio
from deconv_cli.diagnostics.well_posedness import WellPosedness, assess
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import InputKind, format_percent
from deconv_cli.workflows.diagnose import bands_of, check_residual_of
from deconv_cli.workflows.find_noise import find_noise
from deconv_cli.workflows.layer_settings import describe_undetermined
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolution import Resolution
from deconv_cli.workflows.trust import measure_scale

_ASSESSED: WeakKeyDictionary[PseudoInverse, WellPosedness] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Solved:
    """What an estimator gave for some data.

    Attributes:
        estimator: what was applied.
        data: what it was applied to, without the bias, in the precision of the arithmetic.
        resolution: how.
        solution: what it gave.
        tolerance: of the certificate.
        choice: how λ was chosen from the data.
        step: distance of neighboring values that a sample of the data can have; 0 where it can have any.
        is_clipped: which samples were taken for bounds, arranged as the operators want them.
    """

    estimator: Estimator
    data: Tensor
    resolution: Resolution
    solution: Solution
    tolerance: float
    choice: LambdaChoice | None
    step: float
    is_clipped: Tensor | None

    def measure(self) -> Reconstruction:
        """Measure what the estimate leaves unexplained, and test it against the noise where that is wanted."""
        estimator, solution, settings = self.estimator, self.solution, self.resolution.settings
        operator, kernel, is_tested = estimator.operator, estimator.kernel, self.resolution.is_tested
        detached = self.data.detach()  # the numbers of the report need no graph
        arranged = estimator.arrange(detached)
        unexplained = solution.residual
        if unexplained is None or unexplained.shape != arranged.shape:
            unexplained = arranged - operator.forward(solution.value.detach())
        filled, share = detached, 1.0
        if self.is_clipped is not None:
            exceeding = torch.where(self.is_clipped, unexplained.clamp_max(0), 0)
            unexplained = unexplained - exceeding
            filled, share = kernel.join(arranged - exceeding), synchronize.as_number((exceeding == 0).double().mean())
        faded = FadedImages.of(arranged, kernel.n_axes)
        if settings.noise == "auto" and is_tested:
            whole = faded if self.is_clipped is None else None
            found = find_noise(filled, kernel, settings, estimator=estimator, observed_share=share, faded=whole)
            settings = replace(settings, noise=found)
        residual = kernel.join(unexplained)
        border = border_profile(residual, kernel.size) if is_tested else ()
        weight = settings.lam * estimator.spectrum.sigma_max**2 if settings.has_lambda else 0.0
        summary = summarize_residual(residual, detached, kernel.n_axes)
        return Reconstruction(
            image=estimator.frame(solution.value),
            solution=replace(solution, left_over=None),
            settings=settings,
            reasons=self.resolution.reasons,
            choice=estimator.choice,
            rcond=estimator.rcond,
            tolerance=self.tolerance,
            residual=summary,
            border=border,
            spectrum=estimator.spectrum,
            scale=measure_scale(operator.mean_square_gain, solution.value.detach(), detached, weight, summary.absolute),
            well_posedness=_assess(estimator) if is_tested else None,
            lost_directions=self._lost() if is_tested else None,
            lambda_choice=self.choice,
            residual_tests=self._test(unexplained, faded, settings, border) if is_tested else None,
            noise_ratio=self._noise_ratio(unexplained, faded, settings) if is_tested else None,
            notes=(*self.resolution.notes, *self._notes()),
        )

    def _test(
        self, unexplained: Tensor, faded: FadedImages, settings: ReconstructionSettings, border: tuple[BorderBand, ...]
    ) -> ResidualTests | None:
        """Test the residual of a linear estimate from data that may hold more than the kernel made."""
        estimator = self.estimator
        is_picture = settings.defaults is InputKind.PICTURE
        is_looked_at = is_picture or settings.predict
        if not isinstance(estimator, PseudoInverse) or not _has_modes(estimator) or not is_looked_at:
            return None
        least = max(self.step, 0.0 if self.choice is None else self.choice.sigma)
        return check_residual_of(
            estimator, unexplained, faded, border=border, noise=model_of(settings), least_noise=least
        )

    def _lost(self) -> LostDirections | None:
        """Count what a layer loses of its input; of a picture what lies outside the frame is lost anyway."""
        estimator = self.estimator
        is_tensor = self.resolution.settings.defaults is InputKind.TENSOR and self.resolution.settings.has_lambda
        if not (isinstance(estimator, PseudoInverse) and is_tensor) or estimator.kernel.field is not None:
            return None
        found = count_lost_directions(estimator)
        return found if found.n_lost > 0 else None

    def _noise_ratio(self, unexplained: Tensor, faded: FadedImages, settings: ReconstructionSettings) -> float | None:
        """Compare the noise with the contrast of the data where a linear estimate shows mostly noise."""
        estimator = self.estimator
        if not isinstance(estimator, PseudoInverse) or not _has_modes(estimator):
            return None
        noise = settings.noise if isinstance(settings.noise, NoiseModel) else NoiseModel(settings.noise_sigma)
        return measure_noise_ratio(unexplained, faded, bands_of(estimator), self.solution.value.detach(), noise)

    def _notes(self) -> tuple[str, ...]:
        """Tell which samples were taken for bounds, and what a layer does not see."""
        notes: tuple[str, ...] = ()
        if self.is_clipped is not None:
            share = format_percent(synchronize.as_number(self.is_clipped.double().mean()))
            which = f"{share} of the samples are full, beside others that are not"
            notes += (f"{which}, and were taken for no more than 'at least this bright'",)
        operator = self.estimator.operator
        if isinstance(operator, LayerConvolution):
            notes += tuple(describe_undetermined(operator, self.resolution.settings.lam))
        return notes


def _has_modes(inverse: PseudoInverse) -> bool:
    """Return whether the kernel is the same everywhere and has no stride, so that frequencies are its modes."""
    return inverse.kernel.field is None and not inverse.operator.is_layer


def model_of(settings: ReconstructionSettings) -> NoiseModel:
    """Give the kind of noise that was found."""
    assert isinstance(settings.noise, NoiseModel)
    return settings.noise


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
