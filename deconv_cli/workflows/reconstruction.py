"""The result of a reconstruction: the estimate, how it was obtained, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import DeterminedShare, LostDirections
from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.predicted_error import PredictedError
from deconv_cli.diagnostics.residual import BorderBand, ResidualSummary
from deconv_cli.diagnostics.residual_tests import (
    CLEARLY_IMPLAUSIBLE,
    EXCESS,
    MORE_THAN_LEFT,
    ResidualFinding,
    ResidualTests,
)
from deconv_cli.diagnostics.well_posedness import WellPosedness
from deconv_cli.errors import UntrustworthyResultError
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.spectrum import Spectrum
from deconv_cli.parts import ShownInNotebook
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers import clipped, photo_prior
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.solver import GIVEN, Choice
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import InputKind, PaddingLike, format_lambda, format_percent, format_size
from deconv_cli.workflows import trust
from deconv_cli.workflows.arithmetic import RECORDED
from deconv_cli.workflows.resolve_settings import Reasons
from deconv_cli.workflows.trust import Doubt, DoubtReason


@dataclass(frozen=True, eq=False)
class Reconstruction(ShownInNotebook):
    """An estimate with the solution and the diagnostics.

    Attributes:
        image: the estimate, shape `(C_in, H, W)` or `(B, C_in, H, W)`, on the scale of the data as they were given;
            differentiable once in data, bias and kernel.
        solution: how the solve ended, and its objective; its value may reach beyond the frame.
        tone_curve: undone first, and applied again to the image; solution, residual, λ, noise and predicted error are
            of light, on a scale that ends at `white` as that of the samples. `None` for samples as they are stored.
        settings: the settings, with a value for everything.
        reasons: why open settings got their values.
        choice: the method that ran, and why.
        tolerance: the certificate that an iteration had to reach.
        residual: y − Ax̂ in numbers.
        border: the residual by distance from the edge; the last band holds everything deeper.
        spectrum: the extreme singular values of the kernel.
        scale: the estimate compared with white images that the kernel would turn into such data.
        well_posedness: the effect of the boundary on the problem; `None` without a quadratic penalty.
        lost_directions: directions of its input that a layer loses; `None` if none are known, and for pictures.
        determined: the share of its input that a layer determines at λ = 0; `None` if it is all, or not measured.
        lambda_choice: how λ was chosen from the data; `None` if it was given.
        predicted_error: the expected error, if `predict` is set. It trusts no pixel of a result that is not trusted.
        residual_tests: verdict on the residual; `None` if it was not tested, as for estimates that are not linear.
        noise_ratio: the noise divided by the data's usual contrast if the estimate shows mostly noise; else `None`.
        excess: how many times larger than the noise a residual is that the noise should have ended; else `None`.
        noise_between: the same if bright points stand out of the noise, which a chosen λ leaves between them.
        clipping: samples outside the range of their type; `None` for samples without a range, and for tensors.
        quadratic: the middle of a photograph under the quadratic prior, which tests the kernel; else `None`.
        finest: size in pixels of the finest detail in it: finer detail of the image comes from its prior.
        actual_error: the root mean square error in stored values, if the truth is known.
        kernel_doubt: why the kernel is probably wrong, if the picture itself shows it; else `None`.
        rise: the share of the estimate's power in weakened frequencies that exceed lower ones; see `measure_rise`.
        light_caution: a sentence if the convolution seems to have acted on other light than assumed.
        noise_found: the standard deviation of the noise that a diagnosis found; `None` if it found none.
        notes: notes on the settings, a sentence each.
        channels: the single channels, if they were restored one by one. Everything else is then pooled, or that of the
            worst channel.
    """

    image: Tensor
    solution: Solution
    settings: ResolvedSettings
    reasons: Reasons
    choice: Choice
    tolerance: float
    residual: ResidualSummary
    border: tuple[BorderBand, ...]
    spectrum: Spectrum
    scale: trust.Scale
    well_posedness: WellPosedness | None
    lost_directions: LostDirections | None = None
    determined: DeterminedShare | None = None
    lambda_choice: LambdaChoice | None = None
    predicted_error: PredictedError | None = None
    residual_tests: ResidualTests | None = None
    noise_ratio: float | None = None
    excess: float | None = None
    noise_between: float | None = None
    clipping: trust.Clipping | None = None
    tone_curve: ToneCurve | None = None
    quadratic: Reconstruction | None = None
    finest: float | None = None
    actual_error: float | None = None
    kernel_doubt: Doubt | None = None
    rise: float = 0.0
    light_caution: str | None = None
    noise_found: float | None = None
    notes: tuple[str, ...] = ()
    channels: tuple[Reconstruction, ...] = ()

    def __post_init__(self) -> None:
        if self.predicted_error is not None and not self.is_trusted:
            object.__setattr__(self, "predicted_error", self.predicted_error.without_trust())

    def __repr__(self) -> str:
        """Describe it in one line: the shape of the image, the prior, λ, the boundary, and whether it is trusted."""
        lam = "" if self.lam is None else f", λ {format_lambda(self.lam)}"
        trusted = "trusted" if self.is_trusted else "not to be trusted"
        shape, prior = tuple(self.image.shape), self.settings.objective
        return f"Reconstruction(image {shape}, prior {prior}{lam}, boundary {self.boundary}, {trusted})"

    def compared_with(self, truth: Tensor | None, written: Tensor | None = None) -> Reconstruction:
        """Compare the image, or the samples that are written of it, with the truth, if that is known."""
        if truth is None:
            return self
        image = self.image.detach() if written is None else written
        image, truth = image.cpu().double(), truth.cpu().double()  # not every device has float64
        found = replace(self, actual_error=synchronize.as_number((image - truth).square().mean().sqrt()))
        # Noise that was amplified raises the contrast, but not the mean.
        sizes = [[abs(float(n)) for n in torch.std_mean(each, correction=0)] for each in (image, truth)]
        pairs = [sorted(pair) for pair in zip(*sizes, strict=True)]
        if written is not None or any(least <= 0 or trust.OTHER_SCALE * least >= most for least, most in pairs):
            return found
        ends = [f"{low:.3g} to {high:.3g}" for low, high in (each.aminmax() for each in (truth, image))]
        note = (
            f"the truth has samples from {ends[0]}, but the result from {ends[1]}; bring both to one scale to compare"
        )
        return replace(found, notes=(*self.notes, f"{note} them"))

    @property
    def has_bounds(self) -> bool:
        """Whether full samples were lower bounds, in any channel."""
        with_bounds = (clipped.OBJECTIVE, photo_prior.OBJECTIVE_WITH_BOUNDS)
        return any(part.solution.objective in with_bounds for part in self.channels or (self,))

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """Reasons not to trust the result as it is; empty if there are none."""
        return tuple(_find_doubts(self))

    @property
    def is_off_at_frame(self) -> bool:
        """Whether no λ was found, and the residual is large along the frame alone: the boundary is wrong first."""
        choice, tests = self.lambda_choice, self.residual_tests
        if choice is None or choice.failure is None or tests is None or self.residual.relative <= trust.ROUNDING:
            return False
        is_known = self.boundary == "unknown" or self.reasons.boundary == RECORDED
        return not is_known and tests.edge_ratio > trust.EDGES_STAND_OUT

    @property
    def prior_sentence(self) -> str | None:
        """The prior that filled in detail the data do not show; `None` for one that learned nothing."""
        return trust.describe_prior(self.finest) if self.settings.objective == "photo" else None

    @property
    def rises(self) -> bool:
        """Whether the quadratic estimate of a channel has far more detail than a picture; see `measure_rise`."""
        parts = self.channels or (() if self.quadratic is None else (self.quadratic,))
        return self.rise > trust.MAX_RISE or any(part.rises for part in parts)

    @property
    def is_trusted(self) -> bool:
        """Whether there is no reason to doubt the result."""
        return not self.doubts

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, a sentence each: the doubts, then the cautions."""
        return (*(doubt.sentence for doubt in self.doubts), *self.cautions)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Warnings that are no reason to doubt the result, a sentence each."""
        return tuple(_find_cautions(self))

    @property
    def noise(self) -> tuple[NoiseModel, ...]:
        """The noise of the data: one model, or one for each channel."""
        if self.channels:
            return tuple(model for channel in self.channels for model in channel.noise)
        model = self.settings.noise
        if isinstance(model, tuple):
            return model
        if not isinstance(model, NoiseModel):
            return ()
        choice = self.lambda_choice
        return (model if choice is None else replace(model, sigma=choice.sigma),)

    @property
    def noise_sigmas(self) -> tuple[float, ...]:
        """The standard deviation of the noise in `unit`, of all channels or of each; empty if it is unknown."""
        choices = [part.lambda_choice for part in self.channels or (self,) if part.lambda_choice is not None]
        if choices:
            sigmas = tuple(choice.sigma for choice in choices)
            return sigmas if len(set(sigmas)) > 1 else sigmas[:1]
        if self.predicted_error is not None:
            return (self.predicted_error.sigma,)
        noise = self.noise_found if self.residual_tests is None else self.residual_tests.noise
        return () if noise is None else (noise,)

    @property
    def is_condition_known(self) -> bool:
        """Whether `spectrum` tells the condition: that of a layer on a torus is not that under another boundary."""
        return self.settings.layer.is_plain or self.boundary == "circular"

    @property
    def boundary(self) -> str:
        """The boundary rule."""
        return self.settings.boundary

    @property
    def padding(self) -> PaddingLike:
        """How far the kernel reached outside the image."""
        return self.settings.padding

    @property
    def lam(self) -> float | tuple[float, ...] | None:
        """λ, dimensionless, or that of each channel; `None` without a quadratic penalty."""
        if not self.settings.has_lambda:
            return None
        lams = tuple(channel.settings.lam for channel in self.channels)
        return lams if len(set(lams)) > 1 else self.settings.lam

    @property
    def gains(self) -> tuple[float | None, ...]:
        """The gain that ended Richardson–Lucy, of all channels or of each, in units a count; `None` for none."""
        found = [part.settings.gain for part in self.channels or (self,)]
        gains = tuple(gain if isinstance(gain, float) else None for gain in found)
        return gains if len(set(gains)) > 1 else gains[:1]

    @property
    def penalty(self) -> str | None:
        """The operator L in λσ²max‖Lx‖²; `None` without a quadratic penalty."""
        return self.settings.penalty if self.settings.has_lambda else None

    @property
    def error_curve(self) -> ToneCurve | None:
        """The tone curve, if the predicted error is one of light; `None` if it is one of stored values."""
        return self.tone_curve if self.settings.is_linear else None

    @property
    def unit(self) -> str:
        """The unit of residual and noise, and of the predicted error of a linear estimate."""
        if self.tone_curve is None:
            return "the samples"
        return f"light, where {self.tone_curve.white:g} is white"

    def raise_for_status(self) -> Reconstruction:
        """Return the reconstruction itself, if it is trusted.

        Raises:
            UntrustworthyResultError: the solver did not reach its tolerance, or there is another doubt.
        """
        self.solution.raise_for_status()
        if not self.is_trusted:
            raise UntrustworthyResultError(f"{self.doubts[0].sentence}.")
        return self


def _find_doubts(result: Reconstruction) -> list[Doubt]:
    """List the reasons not to trust a result; those of channels that were restored one by one name the channels."""
    channels, found = result.channels, trust.doubt_solver(result.solution, result.settings.objective)
    is_quadratic_light = result.settings.defaults is InputKind.PICTURE and result.settings.objective == "quadratic"
    if channels:
        of_channels = [(n, doubt) for n, channel in enumerate(channels, start=1) for doubt in channel.doubts]
        # As to the error, other channels may be right.
        reasons = dict.fromkeys(doubt.reason for _, doubt in of_channels if doubt.reason is not DoubtReason.ERROR)
        found = []
        for reason in reasons:
            sentences = [(n, doubt.sentence) for n, doubt in of_channels if doubt.reason is reason]
            found += [Doubt(reason, sentence) for sentence in trust.name_channels(sentences, len(channels))]
    else:
        choice = result.lambda_choice
        # If the estimate explains the data up to rounding, any λ will do.
        if result.is_off_at_frame:
            found.insert(0, Doubt(DoubtReason.RESIDUAL_TESTS, trust.describe_border(result.boundary)))
        elif choice is not None and choice.failure is not None and result.residual.relative > trust.ROUNDING:
            advice = trust.LIGHT_WITHOUT_NOISE if is_quadratic_light and choice.is_of_no_noise else ""
            found.append(Doubt(DoubtReason.LAMBDA, f"{choice.failure}{advice}"))
        found += [*_doubt_layer(result), *_doubt_residual(result), *_doubt_noise(result)]
    if result.kernel_doubt is not None:
        found.append(result.kernel_doubt)
    # What is written may have another range than the data of a channel had.
    is_of_noise = any(part.noise_between for part in channels or (result,))
    is_known = DoubtReason.CLIPPING in {doubt.reason for doubt in found}
    if result.clipping is not None and not is_of_noise and not is_known:
        found += trust.doubt_clipping(result.clipping, result.settings.objective, is_light=is_quadratic_light)
    if result.quadratic is not None and not channels:
        known = {doubt.reason for doubt in found}
        if trust.overshoots_at_edges(result.quadratic.clipping):
            known.add(DoubtReason.CLIPPING)
        wrong = [doubt for doubt in result.quadratic.doubts if doubt.reason in trust.WRONG_KERNEL]
        for doubt in wrong:
            if doubt.reason not in known:
                advice = trust.NOISE_OR_KERNEL.format(trust.SMOOTHER["quadratic"])  # λ is that of the test alone
                sentence = doubt.sentence.replace(trust.FEW_PHOTONS, "").replace(advice, "the kernel is probably wrong")
                found.append(replace(doubt, sentence=f"with the quadratic prior, {sentence}"))
    return found or _doubt_error(result)


def _doubt_layer(result: Reconstruction) -> list[Doubt]:
    """Doubt that a layer is the right one."""
    settings, residual, scale, border = result.settings, result.residual, result.scale, result.border
    if settings.defaults is not InputKind.TENSOR or not settings.has_lambda:
        return []
    # A penalty on differences fills in pixels that no output depends on, with larger values than usual.
    is_identity = settings.penalty == "identity"
    is_at_edges = bool(border) and border[0].residual_rms > trust.EDGES_STAND_OUT * border[-1].residual_rms
    others, bias = (" or groups", "") if scale.has_bias else (", groups or a bias", ", or a bias, which you must give")
    options = f"a stride, a dilation{others}, which you must give, as in stride=2"
    cause = f"the layer may have {options}"
    if not settings.layer.is_plain:
        cause = f"the layer may have another stride, dilation or number of groups{bias}"
    if scale.larger_kernel:
        cause = scale.larger_kernel
    elif scale.is_rectified:
        cause = "the data are probably the output of an activation such as ReLU"
    elif is_at_edges:
        cause = 'the layer probably has another padding or boundary (try padding="valid")'
        cause += "" if scale.has_more_data or not settings.layer.is_plain else f", or {options}"
    if settings.input_size is not None:
        cause = f"the input may have another size than {format_size(settings.input_size)}, or {cause}"
    if len(residual.per_channel) in (1, 3):
        cause += ', or the data are a picture (try defaults="picture")'
    is_missing = is_identity and scale.missing > trust.MAX_MISSING and (is_at_edges or not scale.has_more_data)
    allowed = max(
        trust.MAX_SHRINKAGE * scale.shrinkage, trust.COARSE_ROUNDING if is_missing else trust.MAX_RELATIVE_RESIDUAL
    )
    if residual.relative > allowed and residual.root_mean_square > EXCESS * (settings.noise_sigma or 0.0):
        part = f"{format_percent(residual.relative)} of the data"
        return [Doubt(DoubtReason.RESIDUAL, f"no image explains {part} under this kernel: {cause}; {_OTHER_CAUSES}")]
    is_large = is_identity and scale.amplification > trust.SUSPICIOUS_AMPLIFICATION
    is_large = is_large and residual.relative > trust.SUSPICIOUS_RESIDUAL
    if not is_large and scale.amplification <= trust.MAX_AMPLIFICATION:
        return []
    found = f"the estimate is {scale.amplification:.3g} times larger than expected for these data and this kernel"
    advice = f"noise was amplified, which a larger λ prevents, or {cause}"
    return [Doubt(DoubtReason.AMPLIFICATION, f"{found}: {advice}; {_OTHER_CAUSES}")]


_OTHER_CAUSES = "docs/howto/layers.md lists other causes"


def _doubt_residual(result: Reconstruction) -> list[Doubt]:
    """Doubt an estimate if the tests of its residual reject it.

    A chosen λ is not the reason of a large residual, and a boundary that was recorded with the blur is not wrong.
    """
    residual, tests, is_lambda_chosen = result.residual, result.residual_tests, result.lambda_choice is not None
    if result.is_off_at_frame:
        return []  # the border is doubted instead
    if tests is None:
        return [] if result.excess is None else [_doubt_excess(result.excess, result.settings)]
    if residual.relative < trust.NEGLIGIBLE_RESIDUAL:
        is_noise = tests.interior_rms <= MORE_THAN_LEFT * tests.rms_of_noise
        if residual.relative <= trust.ROUNDING or is_noise or tests.implausible_share <= CLEARLY_IMPLAUSIBLE:
            return []
        other = "" if is_lambda_chosen else ", or λ is too small"
        return [Doubt(DoubtReason.RESIDUAL_TESTS, f"{ResidualFinding.WRONG_KERNEL.sentence}{other}")]
    noise = tests.noise or 0.0
    is_far = tests.interior_rms > trust.FAR_ABOVE_NOISE * noise
    is_of_boundary = tests.finding is ResidualFinding.WRONG_BOUNDARY
    # A large λ leaves a residual with edges of its own, as at the seam of a scene that does not repeat.
    is_of_lambda = is_of_boundary and is_far and not is_lambda_chosen
    if tests.finding.is_rejection and not is_of_lambda:
        is_recorded = is_of_boundary and result.reasons.boundary == RECORDED
        return [
            Doubt(DoubtReason.RESIDUAL_TESTS, trust.WRONG_THOUGH_RECORDED if is_recorded else tests.finding.sentence)
        ]
    if not (tests.finding is ResidualFinding.OVER_SMOOTHED and is_far and is_lambda_chosen):
        return []
    return [_doubt_excess(tests.interior_rms / noise, result.settings)]


def _doubt_excess(ratio: float, settings: ResolvedSettings) -> Doubt:
    """Doubt a kernel that leaves a residual of `ratio` times the noise, although the data chose how far to smooth."""
    given = [] if settings.has_lambda else [n for n in ("tolerance", "gain") if isinstance(getattr(settings, n), float)]
    other = f", or {' or '.join(given)} is too large" if given else ""
    cause = f"the kernel is probably wrong for these data{other}"
    return Doubt(DoubtReason.RESIDUAL, f"the residual is {ratio:.2g} times as large as the noise: {cause}")


def _doubt_noise(result: Reconstruction) -> list[Doubt]:
    """Doubt an estimate that shows mostly noise."""
    if result.noise_ratio is None:
        return []
    ratio = f"{result.noise_ratio:.2g} times as strong as the contrast of most of the data"
    advice = 'a larger λ; lam="auto" chooses it from the data'
    if result.lambda_choice is not None:
        advice = 'a larger λ, another kernel, or, for counts of light, such as stars, method="richardson-lucy"'
    return [Doubt(DoubtReason.NOISE, f"the estimate shows mostly noise, {ratio}: use {advice}")]


def _doubt_error(result: Reconstruction) -> list[Doubt]:
    """Doubt a picture under a λ that was given if no channel has a trusted pixel, though all have noise."""
    if result.settings.defaults is InputKind.TENSOR or result.reasons.lam != GIVEN:
        return []
    for part in result.channels or (result,):
        error = part.predicted_error
        if error is None or error.trusted_share > 0 or part.residual.relative <= trust.ROUNDING:
            return []
    return [Doubt(DoubtReason.ERROR, trust.UNTRUSTED)]


def _find_cautions(result: Reconstruction) -> list[str]:
    """List warnings that are no reason to doubt a result, a sentence each; a doubt alone says what to do about λ."""
    of_channels: list[tuple[int, str]] = []
    for number, part in enumerate(result.channels or (result,), start=1):
        choice, tests, warnings = part.lambda_choice, part.residual_tests, []
        # Any λ explains a flat image, so that the rules have nothing to choose by. A failure is a doubt, or harmless.
        is_open = choice is not None and choice.failure is None and not trust.is_flat(part.image, choice.sigma)
        if choice is not None and choice.warning is not None and is_open:
            warnings.append(choice.warning)
        if tests is not None and not part.doubts and not part.noise_between:
            # Of 40 blurred channels of photographs one looked over-smoothed under the λ that was chosen from the data,
            # though no other restored it better; under three to thirty times that λ all that looked so were worse.
            is_smoothed = tests.finding is ResidualFinding.OVER_SMOOTHED and choice is None
            is_at_odds = is_smoothed or tests.finding is ResidualFinding.NOISE_FITTED
            if is_at_odds and part.residual.relative >= trust.NEGLIGIBLE_RESIDUAL:
                warnings.append(tests.finding.sentence)
        if part.noise_between:
            warnings.append(
                f"the noise between bright points is {part.noise_between:.2g} times as strong as in the data: for "
                'counts of light, such as stars, method="richardson-lucy" amplifies it less'
            )
        told = [doubt.sentence for doubt in part.doubts]
        of_channels += [(number, said) for said in warnings if not any(said in sentence for sentence in told)]
    found = trust.name_channels(of_channels, len(result.channels))
    found += [] if result.light_caution is None else [result.light_caution]
    if result.determined is not None:
        found.append(
            "the data do not determine some directions of the input, or only below rounding: the estimate may be wrong "
            "along them; use λ > 0 to keep these small"
        )
    if result.well_posedness is not None and result.well_posedness.is_well_posed is False:
        exact = "" if result.image.dtype == torch.float64 else ", or data and kernel that were computed in float64"
        found.append(f"{result.well_posedness.reason}; use λ > 0{exact}")
    return found
