"""Whether a border loses part of the image, how deep the edge reaches, and what would mend it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from deconv_cli.diagnostics.influence import InfluenceDepth, influence_depth
from deconv_cli.diagnostics.winding import AxisRoots, axis_roots
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundaries.rule import BoundaryRule, as_rule
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.geometry import Geometry, Pads
from deconv_cli.operators.spectrum import Spectrum
from deconv_cli.vocabulary import Size

# Without λ, modes whose singular values are below this fraction of the largest are called lost: they amplify noise more
# than a thousand times.
LOST = 1e-3
# The advised λ is this fraction of the symbol's smallest singular value, squared: it spoils no frequency by more than
# one percent, and amplifies noise at most five times as much as the symbol itself does.
ADVISED_FRACTION = 0.1
MIN_ADVISED_LAMBDA = 1e-6
# Influence of 1 % beyond this part of the shorter side is called deep.
DEEP = 0.25

UNTESTED = "the border was not tested: the channels of the kernel depend on one another, or are too many"

_Roots: TypeAlias = tuple[AxisRoots, AxisRoots]


@dataclass(frozen=True)
class WellPosedness:
    """What the border does to the problem, found from the kernel alone before anything is solved.

    Attributes:
        is_well_posed: the border does not amplify errors in the data: it loses no modes, or λ > 0 bounds what they do.
            `None` if it was not tested.
        threshold: √λ, below which the penalty decides instead of the data; 1e-3 for λ = 0. In units of σmax.
        reason: the finding as a sentence.
        n_border_modes: an estimate of how many singular values vanish as the image grows, though those of the symbol
            do not; `None` if it was not tested, as below.
        n_lost_modes: how many of them are below `threshold` at this size; several times too many where a padding adds
            rows and takes columns.
        windings: the least and the largest winding number of det K along the rows and along the columns, over the
            frequencies of the other axis; `None` where the border made the test needless.
        n_frequencies: how many frequencies along the edges were looked at; 0 where none had to be.
        nearest_root: modulus of the root of det K nearest to the unit circle, turned inside: without λ the influence of
            the edge fades like its powers in the end. `None` where it was not looked for.
        influence: how deep the edge reaches into the estimate; `None` on a torus, or if it was not measured.
        is_deep: the influence of 1 % reaches beyond a quarter of the shorter side.
        advice: what would make the problem well posed, a sentence each; empty where nothing is lost.
        advised_lambda: a λ that bounds the noise; `None` where none is needed.
        advised_pads: borders of the same total width under which nothing is lost; `None` if there are none.
    """

    is_well_posed: bool | None
    threshold: float
    reason: str
    n_border_modes: int | None = 0
    n_lost_modes: int | None = 0
    windings: tuple[Size, Size] | None = None
    n_frequencies: int = 0
    nearest_root: float | None = None
    influence: InfluenceDepth | None = None
    is_deep: bool = False
    advice: tuple[str, ...] = ()
    advised_lambda: float | None = None
    advised_pads: Pads | None = None


@dataclass(frozen=True)
class _Loss:
    """Estimated numbers of modes, and those below the threshold."""

    n_border_modes: int
    n_lost_modes: int


def assess(
    taps: Tensor, geometry: Geometry, boundary: str | BoundaryRule, *, lam: float, penalty: str, spectrum: Spectrum
) -> WellPosedness:
    """Judge a problem by the roots of its kernel's polynomial, without building it.

    Where the border cannot lose anything (circular, unknown, valid, full) only the depth of influence is measured.

    Args:
        taps: shape `(C_out, C_in, kH, kW)`.
        geometry: the sizes.
        boundary: what lies outside the image.
        lam: λ.
        penalty: which L.
        spectrum: of the same kernel on the torus of the image.
    """
    threshold = math.sqrt(lam) if lam > 0 else LOST
    size = geometry.image_size
    rule = as_rule(boundary)
    harmless = _harmless(geometry, rule, is_tall=taps.shape[0] > taps.shape[1])
    if rule.is_periodic:
        return WellPosedness(is_well_posed=True, threshold=threshold, reason=str(harmless))
    roots = None if harmless else _find_roots(taps, size)
    # Roots tell singular values relative to the symbol's ordinary ones, whose mean square is a sum over the taps.
    ordinary = synchronize.as_number(to_float64(taps).square().sum() / min(taps.shape[:2])) ** 0.5
    fraction = threshold * spectrum.sigma_max / ordinary
    loss = None if roots is None else _loss(roots, geometry.pads, size, fraction)
    if loss is not None and loss.n_lost_modes > 0 and lam == 0:
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
    if roots is None or loss is None:
        return replace(finding, is_well_posed=None, n_border_modes=None, n_lost_modes=None)
    rows, columns = roots
    pads = geometry.pads
    is_lossy = loss.n_lost_modes > 0
    shift = _harmless_shift(roots, geometry, fraction) if is_lossy else None
    advised_lambda = _advised_lambda(spectrum) if is_lossy and lam == 0 else None
    return replace(
        finding,
        is_well_posed=lam > 0 or not is_lossy,
        n_border_modes=loss.n_border_modes,
        n_lost_modes=loss.n_lost_modes,
        windings=(rows.windings(_sides(pads, 0)), columns.windings(_sides(pads, 1))),
        n_frequencies=rows.n_lines + columns.n_lines,
        nearest_root=max(rows.nearest_root, columns.nearest_root),
        reason=_reason(loss, lam, is_square=taps.shape[0] == taps.shape[1]),
        advice=_advice(advised_lambda, shift) if is_lossy else (),
        advised_lambda=advised_lambda,
        advised_pads=shift,
    )


def _find_roots(taps: Tensor, size: Size) -> _Roots | None:
    rows = axis_roots(taps, 0, edge=size[1])
    columns = None if rows is None else axis_roots(taps, 1, edge=size[0])
    return None if rows is None or columns is None else (rows, columns)


def _harmless(geometry: Geometry, boundary: BoundaryRule, *, is_tall: bool) -> str | None:
    """Say why a border cannot lose anything, or `None` if it can.

    `valid` has A Aᵀ = T(K Kᴴ) and `full` with zeros AᵀA = T(KᴴK), sections of the symbol whose eigenvalues lie between
    those of the symbol. A tall `valid` convolution has a null space besides: exponentials at the common roots of all
    outputs, as many at every size.
    """
    if boundary.is_periodic:
        return "on a torus there is no edge: the singular values are those of the kernel's symbol"
    pads = geometry.pads
    if boundary.is_unknown or not any(pads.total):
        if is_tall:
            return "nothing is taken to lie outside, so there is no border to lose anything at"
        return "nothing is taken to lie outside, so no singular value is below those of the kernel's symbol"
    if all(
        pad >= k - 1 for side in (pads.before, pads.after) for pad, k in zip(side, geometry.kernel_size, strict=True)
    ):
        return "the output holds all that the kernel made of every pixel, so the border loses nothing"
    return None


def _loss(roots: _Roots, pads: Pads, size: Size, fraction: float) -> _Loss:
    rows, columns = roots
    found = below = 0.0
    for along_rows, along_columns in zip(
        rows.border_modes(_sides(pads, 0), length=size[0], edge=size[1]),
        columns.border_modes(_sides(pads, 1), length=size[1], edge=size[0]),
        strict=True,
    ):
        axes = (along_rows, along_columns)
        matched = sum(modes.estimate(modes.n_modes) for modes in axes)
        # What one axis leaves unseen, and the surplus of data that the other axis has, are matched around the corners.
        unseen = sum(modes.estimate(modes.n_unseen) for modes in axes)
        unreached = sum(modes.estimate(modes.n_unreached) for modes in axes)
        around_corners = min(unseen, unreached) - matched
        found += matched + around_corners
        below += around_corners + sum(modes.estimate((modes.singular_values < fraction).sum(-1)) for modes in axes)
    return _Loss(_count(found), _count(below))


def _sides(pads: Pads, axis: int) -> tuple[int, int]:
    return pads.before[axis], pads.after[axis]


def _count(estimate: float) -> int:
    """Round, but let nothing that was found vanish."""
    return max(round(estimate), int(estimate > 0))


def _harmless_shift(roots: _Roots, geometry: Geometry, fraction: float) -> Pads | None:
    """Find borders of the same total width, as near as can be to the present ones, that lose nothing."""
    pads, (height, width) = geometry.pads, geometry.image_size
    rows, columns = pads.total
    top = _lossless_start(roots[0], pads.before[0], rows, (height, width), fraction)
    left = _lossless_start(roots[1], pads.before[1], columns, (width, height), fraction)
    if top is None or left is None:
        return None
    shifted = Pads((top, left), (rows - top, columns - left))
    return shifted if _loss(roots, shifted, geometry.image_size, fraction).n_lost_modes == 0 else None


def _lossless_start(roots: AxisRoots, present: int, total: int, size: Size, fraction: float) -> int | None:
    """Find how many of `total` border pixels should stand at the start of an axis of `size` (length, edge)."""
    for start in sorted(range(total + 1), key=lambda start: abs(start - present)):
        groups = roots.border_modes((start, total - start), length=size[0], edge=size[1])
        if not any(bool((modes.singular_values < fraction).any()) for modes in groups):
            return start
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


def _reason(loss: _Loss, lam: float, *, is_square: bool) -> str:
    if loss.n_lost_modes == 0:
        if is_square:
            return "the border loses nothing that the kernel lets through"
        return "the border loses nothing: with unequal numbers of channels no image along an edge escapes all outputs"
    lost = f"about {loss.n_lost_modes} {'mode' if loss.n_lost_modes == 1 else 'modes'} along the edges"
    if lam > 0:
        return f"{lost} come through this border too weakly for the data to decide them; the penalty does"
    return (
        f"{lost} all but vanish under this border, and come back amplified more than {1 / LOST:.0f} times together "
        "with noise and rounding, though the kernel itself lets them through"
    )


def _advice(lam: float | None, shift: Pads | None) -> tuple[str, ...]:
    advice = []
    if lam is not None:
        advice.append(
            f"λ = {lam:g} with penalty identity amplifies no noise more than {0.5 / math.sqrt(lam):.3g} / σmax times"
        )
    advice.append(
        "where the convolution can be chosen, padding full keeps them all, and padding valid has no border to lose "
        "them at, but leaves the outermost pixels to the least norm"
    )
    if shift is not None:
        advice.append(
            f"an output of the same size that is aligned to the kernel's weight loses none: {shift.before[0]} border "
            f"pixels above, {shift.after[0]} below, {shift.before[1]} to the left and {shift.after[1]} to the right"
        )
    return tuple(advice)
