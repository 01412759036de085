"""Whether a boundary loses part of the image, how deep the edge reaches, and what would help."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from deconv_cli.diagnostics.influence import InfluenceDepth, influence_depth
from deconv_cli.diagnostics.lost_modes import LostModes, Roots, count_lost_modes, find_lossless_pads
from deconv_cli.diagnostics.winding import axis_roots
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundaries.rule import BoundaryRule, as_rule
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.geometry import Geometry, Pads
from deconv_cli.operators.spectrum import Spectrum
from deconv_cli.regularizers import PenaltyLike
from deconv_cli.vocabulary import Size, counted

# Without λ, modes whose singular values are below this fraction of the largest are called lost: they amplify noise more
# than a thousand times.
LOST = 1e-3
# The advised λ is this fraction of the symbol's smallest singular value, squared: it spoils no frequency by more than
# one percent, and amplifies noise at most five times as much as the symbol itself does.
ADVISED_FRACTION = 0.1
MIN_ADVISED_LAMBDA = 1e-6
# Influence of 1 % beyond this part of the shorter side is called deep.
DEEP = 0.25

UNTESTED = "the boundary was not tested: the channels of the kernel depend on one another, or are too many"
SIDES = (("ahead", "behind"), ("above", "below"), ("to the left", "to the right"))
"""Of planes, rows and columns."""


@dataclass(frozen=True)
class WellPosedness:
    """What the boundary does to the problem, found from the kernel alone before anything is solved.

    Attributes:
        is_well_posed: the boundary does not amplify errors in the data: it loses no modes, or λ > 0 bounds what they
            do. `None` if it was not tested.
        threshold: √λ, below which the penalty decides instead of the data; 1e-3 for λ = 0. In units of σmax.
        reason: the finding as a sentence.
        n_border_modes: an estimate of how many singular values vanish as the image grows, though those of the symbol
            do not; `None` if it was not tested, as below.
        n_lost_modes: how many of them are below `threshold` at this size; several times too many where a padding adds
            rows and takes columns.
        windings: the least and the largest winding number of det K along each axis, over the frequencies of the
            others; `None` where the boundary made the test needless.
        n_frequencies: how many frequencies along the edges were looked at; 0 where none had to be.
        nearest_root: modulus of the root of det K nearest to the unit circle, turned inside: without λ the influence of
            the edge fades like its powers in the end. `None` where it was not looked for.
        influence: how deep the edge reaches into the estimate; `None` on a torus, or if it was not measured.
        is_deep: the influence of 1 % reaches beyond a quarter of the shorter side.
        advice: what would make the problem well posed, a sentence each; empty where nothing is lost.
        advised_lambda: a λ that bounds the noise; `None` where none is needed.
        advised_pads: border pixels of the same total number under which nothing is lost; `None` if there are none.
    """

    is_well_posed: bool | None
    threshold: float
    reason: str
    n_border_modes: int | None = 0
    n_lost_modes: int | None = 0
    windings: tuple[Size, ...] | None = None
    n_frequencies: int = 0
    nearest_root: float | None = None
    influence: InfluenceDepth | None = None
    is_deep: bool = False
    advice: tuple[str, ...] = ()
    advised_lambda: float | None = None
    advised_pads: Pads | None = None


def assess(
    taps: Tensor,
    geometry: Geometry,
    boundary: str | BoundaryRule,
    *,
    lam: float,
    penalty: PenaltyLike,
    spectrum: Spectrum,
) -> WellPosedness:
    """Assess a problem by the roots of its kernel's polynomial, without building it.

    Where the boundary cannot lose anything (circular, unknown, valid, full) only the depth of influence is measured.

    Args:
        taps: shape `(C_out, C_in, *k)`.
        geometry: the sizes.
        boundary: what lies outside the image.
        lam: λ.
        penalty: which L.
        spectrum: of the same kernel on the torus of the image.
    """
    threshold = math.sqrt(lam) if lam > 0 else LOST
    size, rule = geometry.image_size, as_rule(boundary)
    harmless = _harmless(geometry, rule, is_tall=taps.shape[0] > taps.shape[1])
    if rule.is_periodic:
        return WellPosedness(is_well_posed=True, threshold=threshold, reason=str(harmless))
    roots = None if harmless else _find_roots(taps, size)
    # Roots give singular values relative to the symbol's ordinary ones, whose mean square is a sum over the taps.
    ordinary = synchronize.as_number(to_float64(taps).square().sum() / min(taps.shape[:2])) ** 0.5
    fraction = threshold * spectrum.sigma_max / ordinary
    lost = None if roots is None else count_lost_modes(roots, geometry.pads, size, fraction)
    if lost is not None and lost.n_lost_modes > 0 and lam == 0:
        # What is lost at one edge depends on the data at the other one.
        influence: InfluenceDepth | None = InfluenceDepth(None, None, None)
    else:
        influence = influence_depth(taps, size, weight=lam * spectrum.sigma_max**2, penalty=penalty)
    finding = WellPosedness(
        is_well_posed=True,
        threshold=threshold,
        influence=influence,
        is_deep=_is_deep(influence, size),
        reason=harmless or UNTESTED,
    )
    if harmless is not None:
        return finding
    if roots is None or lost is None:
        return replace(finding, is_well_posed=None, n_border_modes=None, n_lost_modes=None)
    is_lossy = lost.n_lost_modes > 0
    lossless = find_lossless_pads(roots, geometry, fraction) if is_lossy else None
    advised_lambda = _advised_lambda(spectrum) if is_lossy and lam == 0 else None
    sides = zip(geometry.pads.before, geometry.pads.after, strict=True)
    return replace(
        finding,
        is_well_posed=lam > 0 or not is_lossy,
        n_border_modes=lost.n_border_modes,
        n_lost_modes=lost.n_lost_modes,
        windings=tuple(along.windings(pads) for along, pads in zip(roots, sides, strict=True)),
        n_frequencies=sum(along.n_lines for along in roots),
        nearest_root=max(along.nearest_root for along in roots),
        reason=_reason(lost, lam, is_square=taps.shape[0] == taps.shape[1]),
        advice=_advice(advised_lambda, lossless) if is_lossy else (),
        advised_lambda=advised_lambda,
        advised_pads=lossless,
    )


def _find_roots(taps: Tensor, size: Size) -> Roots | None:
    """Find the roots along each axis; `None` where the test does not apply."""
    roots = [axis_roots(taps, axis, edge=math.prod(size) // n) for axis, n in enumerate(size)]
    found = tuple(along for along in roots if along is not None)
    return found if len(found) == len(size) else None


def _harmless(geometry: Geometry, boundary: BoundaryRule, *, is_tall: bool) -> str | None:
    """Return why a boundary cannot lose anything, or `None` if it can.

    `valid` has A Aᵀ = T(K Kᴴ) and `full` with zeros AᵀA = T(KᴴK), sections of the symbol whose eigenvalues lie between
    those of the symbol. A tall `valid` convolution has a null space besides: exponentials at the common roots of all
    outputs, as many at every size.
    """
    if boundary.is_periodic:
        return "on a torus there is no edge: the singular values are those of the kernel's symbol"
    pads = geometry.pads
    if boundary.is_unknown or not any(pads.total):
        if is_tall:
            return "nothing is taken to lie outside, so nothing can be lost at a border"
        return "nothing is taken to lie outside, so no singular value is below those of the kernel's symbol"
    if all(
        pad >= k - 1 for side in (pads.before, pads.after) for pad, k in zip(side, geometry.kernel_size, strict=True)
    ):
        return "the output holds all that the kernel made of every pixel, so the boundary loses nothing"
    return None


def _advised_lambda(spectrum: Spectrum) -> float:
    """Round up to one digit what keeps the noise within five times that of the symbol."""
    wanted = max((ADVISED_FRACTION / spectrum.condition) ** 2, MIN_ADVISED_LAMBDA)
    power = 10.0 ** math.floor(math.log10(wanted))
    return float(f"{math.ceil(wanted / power - 1e-9) * power:.0e}")


def _is_deep(influence: InfluenceDepth | None, size: Size) -> bool:
    if influence is None or influence.hundredth is None:
        return influence is not None
    return influence.hundredth > max(DEEP * min(size), 1)


def _reason(lost: LostModes, lam: float, *, is_square: bool) -> str:
    if lost.n_lost_modes == 0:
        if is_square:
            return "the boundary loses nothing that the kernel lets through"
        return "the boundary loses nothing: with unequal numbers of channels no image along an edge escapes all outputs"
    modes = f"about {counted(lost.n_lost_modes, 'mode')} along the edges"
    if lam > 0:
        return f"{modes} come through under this boundary too weakly for the data to decide them; the penalty does"
    return (
        f"{modes} all but vanish under this boundary, and come back amplified more than {1 / LOST:.0f} times together "
        "with noise and rounding, though the kernel itself lets them through"
    )


def _advice(lam: float | None, lossless: Pads | None) -> tuple[str, ...]:
    advice = []
    if lam is not None:
        advice.append(
            f"λ = {lam:g} with penalty identity amplifies no noise more than {0.5 / math.sqrt(lam):.3g} / σmax times"
        )
    advice.append(
        "where the convolution can be chosen, padding full keeps them all, and padding valid has no border to lose "
        "them at, but leaves the outermost pixels to the least norm"
    )
    if lossless is not None:
        n_axes = len(lossless.before)
        ends = SIDES[-n_axes:] if n_axes > 1 else SIDES[:1]
        sides = zip(ends, lossless.before, lossless.after, strict=True)
        numbers = [f"{n} {word}" for words, *both in sides for n, word in zip(both, words, strict=True)]
        numbers[0] = numbers[0].replace(" ", " border pixels ", 1)
        places = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
        advice.append(f"an output of the same size that is aligned to the kernel's weight loses none: {places}")
    return tuple(advice)
