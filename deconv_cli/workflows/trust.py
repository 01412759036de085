"""Decides whether a reconstruction is to be trusted, for every report and exit code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deconv_cli.diagnostics.noise_level import LEAST_SIDE, estimate_noise
from deconv_cli.diagnostics.residual_tests import (
    CLEARLY_IMPLAUSIBLE,
    EXCESS,
    MORE_THAN_LEFT,
    ResidualFinding,
)
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.solver import GIVEN
from deconv_cli.vocabulary import NUMBER, InputKind, format_percent
from deconv_cli.workflows.light import RECORDED

if TYPE_CHECKING:
    from deconv_cli.workflows.reconstruction import Reconstruction

MAX_RELATIVE_RESIDUAL = 0.05
"""Residual of a tensor, in parts of the data, that no noise of a layer explains."""
MAX_SHRINKAGE = 3.0
"""The residual may also be this multiple of the part that λ leaves of white images."""
MAX_AMPLIFICATION = 50.0
"""How many times larger than usual an estimate may be."""
SUSPICIOUS_AMPLIFICATION, SUSPICIOUS_RESIDUAL = 4.0, 0.004
"""The right kernel never gives both. It gives one of them for smooth images, and the other for noise."""
COARSE_ROUNDING = 2e-3
"""Residual of a tensor, in parts of the data, that rounding to bfloat16 may leave."""
MAX_MISSING = 1.25
"""Size of the missing part of an estimate, relative to white images. Layers of the face detector MTCNN and random ones
lack at most 0.8 under the right padding, if λ is at most 0.1 and noise at most 1 %, and at least 4.8 under a wrong one
if they have as many outputs as inputs."""
EDGES_STAND_OUT = 5.0
"""Residual on the edge of a layer's output over that inside: at most 3 under the right padding, at least 12 under a
wrong one."""
MAX_CLIPPED_SHARE = 0.05
"""Part of the samples that may leave the range of their type."""
OVERSHOOT, OF_NOISE, MOST_OF_CONTRAST = 0.05, 2.0, 0.1
"""A sample leaves the range if it is beyond it by the first part of the contrast of the data, as edges overshoot
slightly, and by the second multiple of the noise, or the third part of the contrast if that is less. On stacks of
pollen of 50 to 500 counts, at most 4.1 % left the range under the right kernel, and at least 15 % under one twice as
wide."""
NEGLIGIBLE_RESIDUAL, ROUNDING = 1e-4, 5e-6
"""Residual of a picture, in parts of the data. Below the first its size and place show nothing, since λ leaves as much
of exact data; below the second it may be rounding alone."""
FAR_ABOVE_NOISE = 3.0
"""Multiple of the noise that the residual of a λ that was chosen from the data may have."""


class DoubtReason(StrEnum):
    """A reason to doubt a result."""

    SOLVER = "solver"
    RESIDUAL = "residual"
    AMPLIFICATION = "amplification"
    RESIDUAL_TESTS = "residual tests"
    CLIPPING = "clipping"
    LAMBDA = "lambda"
    NOISE = "noise"
    ERROR = "expected error"
    KERNEL = "estimated kernel"


UNTRUSTED = (
    "no pixel can be trusted, since the expected error is as large as the detail everywhere: "
    'lam="auto" chooses λ from the data'
)
WRONG_THOUGH_RECORDED = (
    "the residual is much larger along the edges than inside, although deconv forward recorded this boundary: the "
    "kernel is probably wrong"
)
WRONG_KERNEL = (DoubtReason.RESIDUAL, DoubtReason.RESIDUAL_TESTS, DoubtReason.CLIPPING)
"""Reasons of the quadratic prior that show a wrong kernel of a photograph."""


@dataclass(frozen=True)
class Doubt:
    """One reason not to trust a result, with a clause that says what to do."""

    reason: DoubtReason
    sentence: str


@dataclass(frozen=True)
class Scale:
    """The size of an estimate, compared with white images that the kernel would turn into such data.

    Attributes:
        amplification: how many times larger it is.
        shrinkage: the part of their data that λ would leave.
        missing: an image that explains the residual is at least this many times as large, if the penalty is the
            identity.
        has_more_data: there are more data than values of the image, so that noise alone has no explanation.
    """

    amplification: float
    shrinkage: float
    missing: float = 0.0
    has_more_data: bool = False


@dataclass(frozen=True)
class Clipping:
    """The share of samples of an estimate far beyond a range, of those that the data leave inside.

    `side` is `below`, `above`, or `outside` for both ends.
    """

    lowest: float
    highest: float
    share: float
    side: str = "outside"


def measure_scale(gain: Tensor, estimate: Tensor, data: Tensor, weight: float, residual: float) -> Scale:
    """Compare an estimate with white images, and with the image that would explain its residual.

    An image z with Az = r has ‖z‖ ≥ ‖r‖² / ‖Aᵀr‖, and an estimate x̂ under the penalty identity has Aᵀr = λσ²max·x̂.
    `gain` is the mean square of the singular values, `weight` λσ²max or 0, and `residual` ‖r‖.
    """
    of_estimate, of_data = (torch.linalg.vector_norm(a, dtype=accumulation_dtype(a)) for a in (estimate, data))
    ratio = (of_estimate * gain.sqrt() / of_data).nan_to_num(0.0)
    amplification, explained = synchronize.as_number(ratio), weight * synchronize.as_number(of_estimate) ** 2
    return Scale(
        amplification,
        synchronize.as_number(weight / (gain + weight)),
        amplification * residual**2 / explained if explained > 0 else 0.0,
        has_more_data=data.numel() > estimate.numel(),
    )


def measure_clipping(
    image: Tensor, data: Tensor, lowest: float, highest: float, *, n_axes: int = 2, noise: float | None = None
) -> Clipping:
    """Measure how much of an estimate lies far beyond a range.

    `noise` is the standard deviation of the noise in the data, which is estimated if it is not given. If the data have
    the shape of the estimate, samples at the ends of the range do not count.
    """
    low, high = (synchronize.as_number(end) for end in data.aminmax())
    least, most = (synchronize.as_number(end) for end in image.aminmax())
    if noise is None and (least < lowest or most > highest) and min(data.shape[-n_axes:]) >= LEAST_SIDE:
        noise = estimate_noise(data.to(image.dtype), n_axes)
    contrast = high - low
    margin = max(OVERSHOOT * contrast, min(OF_NOISE * (noise or 0.0), MOST_OF_CONTRAST * contrast))
    below, above = lowest - margin, highest + margin
    if below <= least and most <= above:
        return Clipping(lowest, highest, 0.0)
    is_beyond = (
        image < below if most <= above else image > above if below <= least else (image < below) | (image > above)
    )
    n_inside = data.numel()
    if data.shape != image.shape:
        n_inside = image.numel()
    elif low <= lowest or high >= highest:
        is_inside = (data > lowest) & (data < highest)
        is_beyond &= is_inside
        n_inside = synchronize.as_index(is_inside.count_nonzero())
    n_beyond = synchronize.as_index(is_beyond.count_nonzero())
    side = "below" if most <= above else "above" if below <= least else "outside"
    return Clipping(lowest, highest, n_beyond / n_inside if n_inside else 0.0, side)


def find_doubts(result: Reconstruction) -> list[Doubt]:
    """List the reasons not to trust a result; those of channels that were restored one by one name the channels."""
    channels, found = result.channels, doubt_solver(result.solution)
    if channels:
        of_channels = [(n, doubt) for n, channel in enumerate(channels, start=1) for doubt in channel.doubts]
        # As to the error, other channels may be right.
        reasons = dict.fromkeys(doubt.reason for _, doubt in of_channels if doubt.reason is not DoubtReason.ERROR)
        found = []
        for reason in reasons:
            sentences = [(n, doubt.sentence) for n, doubt in of_channels if doubt.reason is reason]
            found += [Doubt(reason, sentence) for sentence in name_channels(sentences, len(channels))]
    else:
        found += [*_doubt_lambda(result), *_doubt_layer(result), *_doubt_residual(result), *_doubt_noise(result)]
    if result.kernel_doubt is not None:
        found.append(Doubt(DoubtReason.KERNEL, result.kernel_doubt))
    # What is written may have another range than the data of a channel had.
    is_of_noise = any(part.noise_between for part in channels or (result,))
    is_known = DoubtReason.CLIPPING in {doubt.reason for doubt in found}
    if result.clipping is not None and not is_of_noise and not is_known:
        found += doubt_clipping(result.clipping)
    if result.quadratic is not None and not channels:
        known = {doubt.reason for doubt in found}
        wrong = [doubt for doubt in result.quadratic.doubts if doubt.reason in WRONG_KERNEL]
        found += [
            replace(doubt, sentence=f"with the quadratic prior, {doubt.sentence}")
            for doubt in wrong
            if doubt.reason not in known
        ]
    return found or _doubt_error(result)


def doubt_solver(solution: Solution) -> list[Doubt]:
    """Doubt a solve that did not reach its tolerance."""
    sentence = f"the solver did not finish: {solution.ending}"
    return [] if solution.status.is_success else [Doubt(DoubtReason.SOLVER, sentence)]


def _doubt_lambda(result: Reconstruction) -> list[Doubt]:
    """Doubt a λ if the rule found no minimum, unless the estimate explains the data up to rounding."""
    choice = result.lambda_choice
    if choice is None or choice.failure is None or result.residual.relative <= ROUNDING:
        return []
    return [Doubt(DoubtReason.LAMBDA, choice.failure)]


def _doubt_layer(result: Reconstruction) -> list[Doubt]:
    """Doubt that a layer is the right one."""
    settings, residual, scale, border = result.settings, result.residual, result.scale, result.border
    if settings.defaults is not InputKind.TENSOR or not settings.has_lambda:
        return []
    # A penalty on differences fills in pixels that no output depends on, with larger values than usual.
    is_identity = settings.penalty == "identity"
    is_at_edges = bool(border) and border[0].residual_rms > EDGES_STAND_OUT * border[-1].residual_rms
    is_missing = is_identity and scale.missing > MAX_MISSING and (is_at_edges or not scale.has_more_data)
    allowed = max(MAX_SHRINKAGE * scale.shrinkage, COARSE_ROUNDING if is_missing else MAX_RELATIVE_RESIDUAL)
    if residual.relative > allowed and residual.root_mean_square > EXCESS * (settings.noise_sigma or 0.0):
        part = f"{format_percent(residual.relative)} of the data"
        return [Doubt(DoubtReason.RESIDUAL, f"no image explains {part} under this kernel: {_CAUSES}")]
    is_large = is_identity and scale.amplification > SUSPICIOUS_AMPLIFICATION
    is_large = is_large and residual.relative > SUSPICIOUS_RESIDUAL
    if not is_large and scale.amplification <= MAX_AMPLIFICATION:
        return []
    found = f"the estimate is {scale.amplification:.3g} times larger than expected for these data and this kernel"
    return [Doubt(DoubtReason.AMPLIFICATION, f"{found}: {_CAUSES}; or noise was amplified, which a larger λ prevents")]


_CAUSES = (
    'padding or boundary may differ (try padding="valid"); the layer may have a stride, a dilation, groups or '
    "transposed weights, which you must give, as in stride=2, groups=4 or transposed=True; its bias may not be undone; "
    "the data may hold noise, or be the output of an activation such as ReLU; they may be a picture (try "
    'defaults="picture")'
)


def _doubt_residual(result: Reconstruction) -> list[Doubt]:
    """Doubt an estimate if the tests of its residual reject it.

    A chosen λ is not the reason of a large residual, and a boundary that was recorded with the blur is not wrong.
    """
    residual, tests, is_lambda_chosen = result.residual, result.residual_tests, result.lambda_choice is not None
    if tests is None:
        return []
    if residual.relative < NEGLIGIBLE_RESIDUAL:
        is_noise = tests.interior_rms <= MORE_THAN_LEFT * tests.rms_of_noise
        if residual.relative <= ROUNDING or is_noise or tests.implausible_share <= CLEARLY_IMPLAUSIBLE:
            return []
        return [Doubt(DoubtReason.RESIDUAL_TESTS, ResidualFinding.WRONG_KERNEL.sentence)]
    noise = tests.noise or 0.0
    is_far = tests.interior_rms > FAR_ABOVE_NOISE * noise
    is_of_boundary = tests.finding is ResidualFinding.WRONG_BOUNDARY
    # A large λ leaves a residual with edges of its own, as at the seam of a scene that does not repeat.
    is_of_lambda = is_of_boundary and is_far and not is_lambda_chosen
    if tests.finding.is_rejection and not is_of_lambda:
        is_recorded = is_of_boundary and result.reasons.boundary == RECORDED
        return [Doubt(DoubtReason.RESIDUAL_TESTS, WRONG_THOUGH_RECORDED if is_recorded else tests.finding.sentence)]
    if not (tests.finding is ResidualFinding.OVER_SMOOTHED and is_far and is_lambda_chosen):
        return []
    found = f"the residual is {tests.interior_rms / noise:.2g} times as large as the noise"
    return [Doubt(DoubtReason.RESIDUAL, f"{found}: the kernel is probably wrong for these data")]


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
        if error is None or error.trusted_share > 0 or part.residual.relative <= ROUNDING:
            return []
    return [Doubt(DoubtReason.ERROR, UNTRUSTED)]


def doubt_clipping(clipping: Clipping) -> list[Doubt]:
    """Doubt an estimate that leaves the range of its samples."""
    if clipping.share <= MAX_CLIPPED_SHARE:
        return []
    low, high = f"{clipping.lowest:g}", f"{clipping.highest:g}"
    ends = {"below": low, "above": high}.get(clipping.side, f"{low} to {high}")
    found = f"{format_percent(clipping.share, 3)} of the restored samples lie far {clipping.side} {ends}"
    advice = (
        "noise was amplified, or the kernel is wrong: smooth more (with a larger λ, weight or strength), or check the "
        "kernel"
    )
    return [Doubt(DoubtReason.CLIPPING, f"{found}: {advice}")]


def find_cautions(result: Reconstruction) -> list[str]:
    """List warnings that are no reason to doubt a result, a sentence each; a doubt alone says what to do about λ."""
    of_channels: list[tuple[int, str]] = []
    for number, part in enumerate(result.channels or (result,), start=1):
        choice, tests, warnings = part.lambda_choice, part.residual_tests, []
        # Any λ explains a flat image, so that the rules have nothing to choose by.
        if choice is not None and choice.warning is not None and not is_flat(part.image, choice.sigma):
            warnings.append(choice.warning)
        if tests is not None and not part.doubts and not part.noise_between:
            # Of 40 blurred channels of photographs one looked over-smoothed under the λ that was chosen from the data,
            # though no other restored it better; under three to thirty times that λ all that looked so were worse.
            is_smoothed = tests.finding is ResidualFinding.OVER_SMOOTHED and choice is None
            is_at_odds = is_smoothed or tests.finding is ResidualFinding.NOISE_FITTED
            if is_at_odds and part.residual.relative >= NEGLIGIBLE_RESIDUAL:
                warnings.append(tests.finding.sentence)
        if part.noise_between:
            warnings.append(
                f"the noise between bright points is {part.noise_between:.2g} times as strong as in the data: for "
                'counts of light, such as stars, method="richardson-lucy" amplifies it less'
            )
        told = [doubt.sentence for doubt in part.doubts]
        of_channels += [(number, said) for said in warnings if not any(said in sentence for sentence in told)]
    found = name_channels(of_channels, len(result.channels))
    found += [] if result.light_caution is None else [result.light_caution]
    if result.well_posedness is not None and result.well_posedness.is_well_posed is False:
        found.append(result.well_posedness.reason)
    return found


def is_flat(image: Tensor, noise: float) -> bool:
    """Return whether the range of an image is no larger than rounding, or than the noise of the data."""
    low, high = (synchronize.as_number(end) for end in image.detach().aminmax())
    return high - low <= max(ROUNDING * max(abs(low), abs(high)), noise)


def name_channels(sentences: Iterable[tuple[int, str]], n_channels: int) -> list[str]:
    """Name the channels of each sentence, unless it is the same for all of several; an image as a whole has 0.

    Sentences that differ only in numbers become one that lists the numbers.
    """
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for number, sentence in sentences:
        words, numbers = NUMBER.split(sentence), NUMBER.findall(sentence)
        found.setdefault(tuple(words), []).append([str(number), *numbers])
    named = []
    for (first, *words), rows in found.items():
        columns = list(zip(*rows, strict=True))
        channels, *numbers = (", ".join(column if len(set(column)) > 1 else column[:1]) for column in columns)
        sentence = first + "".join(number + word for number, word in zip(numbers, words, strict=True))
        is_same = len(rows) == n_channels > 1 and all(len(set(column)) == 1 for column in columns[1:])
        which = "" if is_same or not n_channels else f"channel{'s' if ',' in channels else ''} {channels}: "
        named.append(f"{which}{sentence}")
    return named


def describe_filled_in(finest: float | None) -> str:
    """Say which detail a learned prior fills in; `finest` is the width in pixels of the finest measured detail."""
    detail = "that is fine" if finest is None else f"finer than about {finest:.1f} pixels"
    return f"detail {detail} is plausible, not measured"


def describe_prior(finest: float | None) -> str:
    """Say what the prior for photographs is, and which detail it fills in."""
    return f"a denoiser that learned from photographs; {describe_filled_in(finest)}"
