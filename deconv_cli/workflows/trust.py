"""Decides whether a reconstruction is to be trusted, for every report and exit code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from deconv_cli.diagnostics.noise_level import LEAST_SIDE, estimate_noise
from deconv_cli.diagnostics.residual_tests import ResidualFinding
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, join_neighbors
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import NUMBER, Size, format_percent

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
RECTIFIED_SHARE = 0.1
"""Part of the samples that have the least value of their channel, from which on a layer seems to end with ReLU."""
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
EXTREME, MAX_EXTREME_SHARE = 0.2, 0.03
"""Part of the contrast by which a quadratic estimate leaves the range under a wrong kernel, and the share of samples
that accuses it. Beside edges of text and of blown lights right kernels had at most 2.4 %. On text and photographs of
scikit-image, kernels of 1.5 to 2 times the width that only this test had found had at least 4 %."""
NEGLIGIBLE_RESIDUAL, ROUNDING = 1e-4, 5e-6
"""Residual of a picture, in parts of the data. Below the first its size and place show nothing, since λ leaves as much
of exact data; below the second it may be rounding alone."""
FAR_ABOVE_NOISE = 3.0
"""Multiple of the noise that the residual may have if λ was chosen from the data, or an iteration ended at the noise.
Iterations under right kernels left at most 2.2; wrong kernels of stars and of photographs up to 18."""
FAR_FOR_PHOTO = 10.0
"""The same under the prior `photo`, which leaves fine detail of a real lens: 4.4 times the noise of a right kernel."""
OTHER_SCALE = 10.0
"""Factor between the contrasts and between the means of result and truth from which on they have different scales."""
MAX_RISE = 0.3
"""Share of a quadratic estimate's power where it rises although the kernel is weak, see `measure_rise`. Of 280 right
kernels on pictures of scikit-image none had more than 0.17; of 56 wrong ones that no other test had found and that cost
3 to 45 dB, 29 had more than 0.3. Small star fields, charts and noise under right kernels have up to 1, so that the
spectrum of the data must speak against the kernel as well."""
RISEN = (
    "at the frequencies that this kernel weakens, the restored picture has far more detail than at lower ones, as no "
    "picture has: the kernel is probably too wide, or of another shape"
)
CLEAR_RESIDUAL = 0.1
"""Part of the contrast of the data below which the residual of an iteration accuses no kernel."""


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
    GIVEN_KERNEL = "kernel"
    SEAM = "seam"


UNTRUSTED = (
    "no pixel can be trusted, since the expected error is as large as the detail everywhere: "
    'lam="auto" chooses λ from the data'
)
WRONG_THOUGH_RECORDED = (
    "the residual is much larger along the edges than inside, although deconv forward recorded this boundary: the "
    "kernel is probably wrong"
)
_OF_SCIPY = {"reflect": "symmetric", "symmetric": "reflect"}
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
        is_rectified: many samples of the data have the least value, as behind ReLU.
        has_bias: a bias of the layer was subtracted.
        larger_kernel: the sizes of a kernel that is larger than the data, in words; else empty.
    """

    amplification: float
    shrinkage: float
    missing: float = 0.0
    has_more_data: bool = False
    is_rectified: bool = False
    has_bias: bool = False
    larger_kernel: str = ""


@dataclass(frozen=True)
class Clipping:
    """The share of samples of an estimate far beyond a range, of those that the data leave inside.

    `side` is `below`, `above`, or `outside` for both ends; `extreme` is the share beyond it by `EXTREME`.
    """

    lowest: float
    highest: float
    share: float
    side: str = "outside"
    extreme: float = 0.0


def looks_rectified(data: Tensor, n_axes: int) -> bool:
    """Return whether many samples have the least value of their channel, as behind ReLU."""
    channels = data.flatten(-n_axes)
    return synchronize.as_number((channels == channels.amin(-1, keepdim=True)).float().mean()) > RECTIFIED_SHARE


def measure_scale(
    gain: Tensor, estimate: Tensor, data: Tensor, weight: float, residual: float, *, is_rectified: bool = False
) -> Scale:
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
        is_rectified=is_rectified,
    )


def measure_clipping(
    image: Tensor,
    data: Tensor,
    lowest: float,
    highest: float,
    *,
    n_axes: int = 2,
    noise: float | None = None,
    kernel_size: Size = (),
) -> Clipping:
    """Measure how much of an estimate lies far beyond a range.

    `noise` is the standard deviation of the noise in the data, which is estimated if it is not given. If the data have
    the shape of the estimate, samples at the ends of the range do not count. If the share is large enough for a
    doubt, samples above the range do not count either within half a kernel of a saturated one: light may exceed white.
    """
    if data.dtype is torch.uint16:  # which torch cannot compare
        data = data.int()
    low, high = (synchronize.as_number(end) for end in data.aminmax())
    least, most = (synchronize.as_number(end) for end in image.aminmax())
    if noise is None and (least < lowest or most > highest) and min(data.shape[-n_axes:]) >= LEAST_SIDE:
        noise = estimate_noise(data.to(image.dtype), n_axes)
    contrast = high - low
    margin = max(OVERSHOOT * contrast, min(OF_NOISE * (noise or 0.0), MOST_OF_CONTRAST * contrast))
    below, above = lowest - margin, highest + margin
    if below <= least and most <= above:
        return Clipping(lowest, highest, 0.0)
    is_inside = (data > lowest) & (data < highest) if data.shape == image.shape else torch.ones_like(image).bool()
    is_outside, is_far = ((image < lowest - m) | (image > highest + m) for m in (margin, EXTREME * contrast))
    if kernel_size and data.shape == image.shape and _share(is_outside, is_inside) > MAX_CLIPPED_SHARE:
        near = join_neighbors(data >= highest, tuple(n // 2 for n in kernel_size), Tensor.bitwise_or_)
        is_inside &= ~(near & (image > highest))
    share, extreme = _share(is_outside, is_inside), _share(is_far, is_inside)
    side = "below" if most <= above else "above" if below <= least else "outside"
    return Clipping(lowest, highest, share, side, extreme)


def _share(is_counted: Tensor, is_inside: Tensor) -> float:
    n_counted, n_inside = (synchronize.as_index(each.count_nonzero()) for each in (is_counted & is_inside, is_inside))
    return n_counted / max(n_inside, 1)


def doubt_solver(solution: Solution, objective: str = "quadratic") -> list[Doubt]:
    """Doubt a solve that did not reach its tolerance."""
    advice = INSTEAD_OF_NONNEGATIVE if objective == "nonnegative" else ""
    sentence = f"the solver did not finish: {solution.ending}{advice}"
    return [] if solution.status.is_success else [Doubt(DoubtReason.SOLVER, sentence)]


NOISE_OR_KERNEL = "noise was amplified, or the kernel is wrong: smooth more, with {}, or check the kernel"
INSTEAD_OF_NONNEGATIVE = '; on data with little noise method="richardson-lucy" is faster, and often better'
LIGHT_WITHOUT_NOISE = '; method="richardson-lucy" or nonnegative=True adds that light is not negative'
FEW_PHOTONS = 'for light from few photons use method="richardson-lucy" or nonnegative=True; otherwise '
SMOOTHER = {
    "quadratic": "a larger λ",
    "photo": "a larger strength",
    "tv": "a larger weight",
    "richardson-lucy": "fewer iterations",
}


def doubt_clipping(clipping: Clipping, objective: str, *, is_light: bool = False) -> list[Doubt]:
    """Doubt an estimate that leaves the range of its samples; the advice depends on the objective and on light."""
    if clipping.share <= MAX_CLIPPED_SHARE:
        return []
    low, high = f"{clipping.lowest:g}", f"{clipping.highest:g}"
    ends = {"below": low, "above": high}.get(clipping.side, f"{low} to {high}")
    found = f"{format_percent(clipping.share, 3)} of the restored samples lie far {clipping.side} {ends}"
    is_negative = is_light and objective == "quadratic" and clipping.lowest == 0 and clipping.side != "above"
    advice = f"{FEW_PHOTONS if is_negative else ''}{NOISE_OR_KERNEL.format(SMOOTHER.get(objective, 'a larger λ'))}"
    return [Doubt(DoubtReason.CLIPPING, f"{found}: {advice}")]


def describe_border(boundary: str) -> str:
    """Say that a boundary is wrong; name `unknown`, then the one that another library calls by its name."""
    other = _OF_SCIPY.get(boundary)
    named = "" if other is None else f', or boundary="{other}", since libraries name these two differently'
    return f"{ResidualFinding.WRONG_BOUNDARY.sentence}{named}; no λ was found, and if that stays so, check the kernel"


def overshoots_at_edges(clipping: Clipping | None) -> bool:
    """Return whether many samples leave the range, but so few far that sharp edges alone explain them."""
    return clipping is not None and clipping.share > MAX_CLIPPED_SHARE and clipping.extreme <= MAX_EXTREME_SHARE


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
