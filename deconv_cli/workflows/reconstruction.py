"""The result of a reconstruction: the estimate, how it was obtained, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import LostDirections
from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.predicted_error import PredictedError, pool_errors
from deconv_cli.diagnostics.residual import BorderBand, ResidualSummary
from deconv_cli.diagnostics.residual_tests import ResidualTests
from deconv_cli.diagnostics.well_posedness import WellPosedness
from deconv_cli.errors import UntrustworthyResultError
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.spectrum import Spectrum
from deconv_cli.registry import ShownInNotebook
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers import clipped, photo_prior
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.solver import Choice
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import PaddingLike, format_lambda
from deconv_cli.workflows import trust
from deconv_cli.workflows.resolve_settings import Reasons, ResolvedInput


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
        lambda_choice: how λ was chosen from the data; `None` if it was given.
        predicted_error: the expected error, if `predict` is set. It trusts no pixel of a result that is not trusted.
        residual_tests: verdict on the residual; `None` if it was not tested, as for estimates that are not linear.
        noise_ratio: the noise divided by the data's usual contrast if the estimate shows mostly noise; else `None`.
        noise_between: the same if bright points stand out of the noise, which a chosen λ leaves between them.
        clipping: samples outside the range of their type; `None` for samples without a range, and for tensors.
        quadratic: the middle of a photograph under the quadratic prior, which tests the kernel; else `None`.
        finest: size in pixels of the finest detail in it: finer detail of the image comes from its prior.
        actual_error: the root mean square error in stored values, if the truth is known.
        kernel_doubt: why the kernel that was found in the picture is probably wrong; else `None`.
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
    lambda_choice: LambdaChoice | None = None
    predicted_error: PredictedError | None = None
    residual_tests: ResidualTests | None = None
    noise_ratio: float | None = None
    noise_between: float | None = None
    clipping: trust.Clipping | None = None
    tone_curve: ToneCurve | None = None
    quadratic: Reconstruction | None = None
    finest: float | None = None
    actual_error: float | None = None
    kernel_doubt: str | None = None
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
        difference = image.cpu().double() - truth.cpu().double()  # not every device has float64
        return replace(self, actual_error=synchronize.as_number(difference.square().mean().sqrt()))

    @property
    def has_bounds(self) -> bool:
        """Whether full samples were lower bounds, in any channel."""
        with_bounds = (clipped.OBJECTIVE, photo_prior.OBJECTIVE_WITH_BOUNDS)
        return any(part.solution.objective in with_bounds for part in self.channels or (self,))

    @property
    def doubts(self) -> tuple[trust.Doubt, ...]:
        """Reasons not to trust the result as it is; empty if there are none."""
        return tuple(trust.find_doubts(self))

    @property
    def prior_sentence(self) -> str | None:
        """The prior that filled in detail the data do not show; `None` for one that learned nothing."""
        return trust.describe_prior(self.finest) if self.settings.objective == "photo" else None

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
        return tuple(trust.find_cautions(self))

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


def join_channels(parts: Sequence[Reconstruction], resolution: ResolvedInput, n_axes: int) -> Reconstruction:
    """Join channels that were restored one by one: images side by side, sizes pooled, the worst of everything else."""
    first = parts[0]
    worst = next((part for part in parts if not part.is_trusted), first)
    doubtful = next((part for part in parts if part.lambda_choice and part.lambda_choice.warning), first)
    order = {False: 0, None: 1, True: 2}
    of_channels = [(number, note) for number, part in enumerate(parts, start=1) for note in part.notes]
    assessed = [part.well_posedness for part in parts if part.well_posedness is not None]
    lam = (
        first.reasons.lam if first.lambda_choice is None else f"each channel separately, the first {first.reasons.lam}"
    )
    joined = replace(
        worst,
        image=torch.cat([part.image for part in parts], dim=-n_axes - 1),
        solution=_solution([part.solution for part in parts], n_axes),
        settings=replace(resolution.settings, lam=first.settings.lam),
        reasons=replace(first.reasons, lam=lam),
        choice=_choice([part.choice for part in parts]),
        residual=_residual([part.residual for part in parts]),
        border=tuple(_band(bands) for bands in zip(*(part.border for part in parts), strict=True)),
        spectrum=max((part.spectrum for part in parts), key=lambda spectrum: spectrum.condition),
        well_posedness=min(assessed, key=lambda found: order[found.is_well_posed]) if assessed else None,
        lambda_choice=doubtful.lambda_choice,
        predicted_error=_predicted(parts, n_axes),
        notes=(*resolution.notes, *trust.name_channels(of_channels, len(parts))),
    )
    return replace(joined, channels=tuple(_views(parts, joined, n_axes)))


def _views(parts: Sequence[Reconstruction], joined: Reconstruction, n_axes: int) -> Iterator[Reconstruction]:
    """Give the same channels as views of the joined result, so that no image is kept twice."""
    images, values = joined.image.split(1, -n_axes - 1), joined.solution.value.split(1, -n_axes - 2)
    errors = None if joined.predicted_error is None else joined.predicted_error.map.split(1, -n_axes - 1)
    for c, part in enumerate(parts):
        predicted = part.predicted_error
        if predicted is not None and errors is not None:
            predicted = replace(predicted, map=errors[c])
        solution = replace(part.solution, value=values[c])
        yield replace(part, image=images[c], solution=solution, predicted_error=predicted)


def _solution(parts: Sequence[Solution], n_axes: int) -> Solution:
    """Take the worst status and the largest numbers."""
    distances = [part.distance_bound for part in parts]
    known = [distance for distance in distances if distance is not None]
    weights = {part.weight for part in parts}
    return replace(
        next((part for part in parts if not part.status.is_success), parts[0]),
        value=torch.cat([part.value for part in parts], dim=-n_axes - 2),
        n_iterations=max(part.n_iterations for part in parts),
        certificate=max(part.certificate for part in parts),
        residual_norms=max((part.residual_norms for part in parts), key=len),
        weight=weights.pop() if len(weights) == 1 else None,
        noise_levels=tuple(level for part in parts for level in part.noise_levels),
        distance_bound=max(known) if len(known) == len(parts) else None,
    )


def _choice(parts: Sequence[Choice]) -> Choice:
    methods = [part.method for part in parts]
    if len(set(methods)) == 1:
        return parts[0]
    return Choice("auto", f"channels differ: {', '.join(methods)}")


def _residual(parts: Sequence[ResidualSummary]) -> ResidualSummary:
    """Pool residuals of equally many samples."""
    absolute = math.hypot(*(part.absolute for part in parts))
    data = math.hypot(*(part.absolute / part.relative for part in parts if part.relative > 0))
    return ResidualSummary(
        relative=absolute / data if data > 0 else 0.0,
        absolute=absolute,
        root_mean_square=math.hypot(*(part.root_mean_square for part in parts)) / math.sqrt(len(parts)),
        per_channel=tuple(value for part in parts for value in part.per_channel),
    )


def _band(bands: Sequence[BorderBand]) -> BorderBand:
    pooled = math.hypot(*(band.residual_rms for band in bands)) / math.sqrt(len(bands))
    return replace(bands[0], residual_rms=pooled)


def _predicted(parts: Sequence[Reconstruction], n_axes: int) -> PredictedError | None:
    found = [part.predicted_error for part in parts if part.predicted_error is not None]
    if len(found) < len(parts):
        return None
    stacked = pool_errors(found, [1.0] * len(found), (len(found), *found[0].map.shape))
    return replace(stacked, map=torch.cat(tuple(stacked.map), dim=-n_axes - 1))
