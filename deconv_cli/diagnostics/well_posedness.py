"""Whether a boundary loses part of the image, how deep a mistake at the edge reaches, and what would help."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.boundary_modes import count_lost_modes, edge_angles, edge_waves, move_ahead
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundary_rules import BoundaryRule, as_rule
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import Spectrum, single_threaded
from deconv_cli.regularizers import PenaltyLike, find_penalty
from deconv_cli.vocabulary import Size, counted

# Without λ, modes with singular values below this fraction of the largest are lost: they amplify noise more than a
# thousand times.
LOST = 1e-3
# The advised λ is the square of this fraction of the symbol's smallest singular value. It changes no frequency by more
# than one percent, and amplifies noise at most five times as much as the symbol itself does.
ADVISED_FRACTION = 0.1
MIN_ADVISED_LAMBDA = 1e-6
# An influence of 1 % beyond this part of the shorter side is deep.
DEEP = 0.25
UNTESTED = "the boundary was not tested: the channels of the kernel depend on one another, or there are too many"
# Bounds on the work of one axis: frequencies along each axis of the edge, and blocks times the cost of solving with
# one.
MAX_LINES = 8
MIN_LINES = 4
MAX_OPERATIONS = 3.5e7
MAX_LENGTH = 1024
MIN_LENGTH = 32


@dataclass(frozen=True)
class InfluenceDepth:
    """Pixels from the edge at which a disturbance of the data there has faded to 10 %, 1 % and 0.1 % of its rms.

    `None` if it reaches through the whole image, or beyond the tested range; 1 if it stays in its own pixel.
    """

    tenth: int | None
    hundredth: int | None
    thousandth: int | None


@dataclass(frozen=True)
class WellPosedness:
    """What the boundary does to the problem, from the kernel alone, before anything is solved.

    Attributes:
        is_well_posed: the boundary loses no modes, or λ > 0 bounds their amplification; `None` if it was not tested.
        threshold: √λ, below which the penalty decides instead of the data; 1e-3 for λ = 0. In units of σmax.
        reason: the finding as a clause.
        n_border_modes: about how many singular values vanish as the image grows, though those of the symbol do not.
        n_lost_modes: those below `threshold` at this size; several times too many if a padding adds rows
            and removes columns.
        windings: the least and the largest winding number of det K along each axis; `None` if no test is needed.
        n_frequencies: number of tested frequencies along the edges.
        influence: how deep the edge reaches into the estimate; `None` on a torus, or if it was not measured.
        is_deep: the influence of 1 % reaches beyond a quarter of the shorter side.
        advice: what would make the problem well posed, a clause each; empty if nothing is lost.
        advised_lambda: a λ that bounds the noise; `None` if none is needed.
    """

    is_well_posed: bool | None
    threshold: float
    reason: str
    n_border_modes: int | None = 0
    n_lost_modes: int | None = 0
    windings: tuple[Size, ...] | None = None
    n_frequencies: int = 0
    influence: InfluenceDepth | None = None
    is_deep: bool = False
    advice: tuple[str, ...] = ()
    advised_lambda: float | None = None


def assess(
    taps: Tensor,
    geometry: Geometry,
    boundary: str | BoundaryRule,
    *,
    lam: float,
    penalty: PenaltyLike,
    spectrum: Spectrum,
) -> WellPosedness:
    """Assess a problem by the zeros of its kernel's polynomial, without building it.

    The taps have the shape `(C_out, C_in, *k)`; the spectrum is that of the same kernel on the torus of the image. If
    the boundary cannot lose anything, only the depth of influence is measured.
    """
    threshold = math.sqrt(lam) if lam > 0 else LOST
    size, rule = geometry.image_size, as_rule(boundary)
    harmless = _harmless(geometry, rule, is_tall=taps.shape[0] > taps.shape[1])
    if rule.is_periodic:
        return WellPosedness(is_well_posed=True, threshold=threshold, reason=str(harmless))
    # The modes are counted relative to the mean square of the symbol, which is a sum over the taps.
    ordinary = synchronize.as_number(to_float64(taps).square().sum() / min(taps.shape[:2])) ** 0.5
    fraction = threshold * spectrum.sigma_max / ordinary
    modes = None if harmless else count_lost_modes(taps, geometry.pads, size, fraction)
    if modes is not None and modes.n_lost > 0 and lam == 0:
        # Modes that are lost at one edge depend on the data at the other one.
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
    if modes is None:
        return replace(finding, is_well_posed=None, n_border_modes=None, n_lost_modes=None)
    is_lossy = modes.n_lost > 0
    advised_lambda = _advised_lambda(spectrum) if is_lossy and lam == 0 else None
    return replace(
        finding,
        is_well_posed=lam > 0 or not is_lossy,
        n_border_modes=modes.n_border,
        n_lost_modes=modes.n_lost,
        windings=modes.windings,
        n_frequencies=modes.n_frequencies,
        reason=_reason(modes.n_lost, lam, is_square=taps.shape[0] == taps.shape[1]),
        advice=_advice(advised_lambda) if is_lossy else (),
        advised_lambda=advised_lambda,
    )


def _harmless(geometry: Geometry, boundary: BoundaryRule, *, is_tall: bool) -> str | None:
    """Return why a boundary cannot lose anything, or `None` if it can.

    `valid` has A Aᵀ = T(K Kᴴ) and `full` with zeros AᵀA = T(KᴴK), sections of the symbol whose eigenvalues lie between
    those of the symbol. A tall `valid` convolution also has a null space: exponentials at the common roots of all
    outputs, as many at every size.
    """
    if boundary.is_periodic:
        return (
            "the image repeats without an edge: the singular values are the magnitudes of the kernel's transfer "
            "function"
        )
    pads = geometry.pads
    if boundary.is_unknown or not any(pads.total):
        if is_tall:
            return "nothing is assumed about the outside, so the border can lose nothing"
        return (
            "nothing is assumed about the outside, so no singular value is below the smallest of the kernel's "
            "transfer function"
        )
    if all(
        pad >= k - 1 for side in (pads.before, pads.after) for pad, k in zip(side, geometry.kernel_size, strict=True)
    ):
        return "the output contains the whole response to every pixel, so the boundary loses nothing"
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


def _reason(n_lost: int, lam: float, *, is_square: bool) -> str:
    if n_lost == 0:
        if is_square:
            return "the boundary loses nothing that the kernel passes"
        return "the boundary loses nothing: with unequal numbers of channels no image along an edge escapes all outputs"
    modes = f"about {counted(n_lost, 'mode')} along the edges"
    if lam > 0:
        return f"{modes} are too weak under this boundary for the data to determine; the penalty determines them"
    return (
        f"{modes} nearly vanish under this boundary, though the kernel itself passes them: undoing them amplifies "
        f"noise and rounding more than {1 / LOST:.0f} times"
    )


def _advice(lam: float | None) -> tuple[str, ...]:
    of_padding = (
        "if you can choose the convolution, padding full keeps them all; padding valid also loses none, but "
        "determines the outermost pixels only by the least norm"
    )
    if lam is None:
        return (of_padding,)
    gain = 0.5 / math.sqrt(lam)
    return (f"λ = {lam:g} with penalty identity amplifies no noise more than {gain:.3g} / σmax times", of_padding)


def influence_depth(taps: Tensor, image_size: Size, *, weight: float, penalty: PenaltyLike) -> InfluenceDepth | None:
    """Measure the largest depth over all axes on a torus, at a sample of the frequencies along the edge.

    The response is (KᴴK + w|l|²)⁻¹Kᴴ with the weight w = λσ²max, or the inverse of K itself, for taps `(C_out, C_in,
    *k)`. Depths were within a factor of two of the real operator's, and mostly within a fifth, unless the boundary
    loses modes. If the pixels outside are unknown, the real depths are smaller, since those pixels absorb part of the
    disturbance. `None` if there are too many channels for the test, or if the symbol is singular.
    """
    wide = to_float64(taps)
    tails = [_tail(wide, axis, image_size, weight, penalty) for axis in range(len(image_size))]
    depths: list[list[int | None]] = []
    for tail, length in zip(tails, image_size, strict=True):
        if tail is None:
            return None
        found = [synchronize.as_index((tail > part).sum()) for part in (0.1, 0.01, 0.001)]
        # A depth of one pixel is that of the disturbed pixel itself, in an image of any size.
        depths.append([None if depth >= max(min(length, len(tail)), 2) else depth for depth in found])
    deeper = [None if None in pair else max(depth or 0 for depth in pair) for pair in zip(*depths, strict=True)]
    return InfluenceDepth(*deeper)


def _tail(taps: Tensor, axis: int, image_size: Size, weight: float, penalty: PenaltyLike) -> Tensor | None:
    """Compute how much of the inverse's response to one disturbed pixel lies at distances of d or more, d = 0, 1, ...

    It is the rms along an axis, relative to d = 0. `None` if too costly, singular or not finite.
    """
    n_outputs, n_inputs = taps.shape[:2]
    affordable = int(MAX_OPERATIONS / (n_outputs * n_inputs * min(n_outputs, n_inputs)))
    length = min(2 * image_size[axis], MAX_LENGTH, affordable // MIN_LINES)
    if length < min(MIN_LENGTH, 2 * image_size[axis]):
        return None
    n_lines = min(MAX_LINES ** max(len(image_size) - 1, 1), affordable // length)
    symbol, angles = _sampled_symbol(taps, axis, length, n_lines)
    squared_penalty = find_penalty(penalty).symbol_at([4 * (angle / 2).sin().square() for angle in angles])
    with single_threaded(taps.device):
        response, info = _response(symbol, weight * squared_penalty)
    if synchronize.holds_anywhere(info) or not synchronize.holds_everywhere(response.isfinite()):
        return None
    offsets_last = response.permute(0, 2, 3, 1).contiguous()
    by_offset = torch.view_as_real(torch.fft.ifft(offsets_last)).square().sum((0, 1, 2, 4))
    offset = torch.arange(length, device=taps.device)
    distance = torch.minimum(offset, length - offset)
    by_distance = by_offset.new_zeros(length // 2 + 1).index_add(0, distance, by_offset)
    tail = by_distance.flip(0).cumsum(0).flip(0)
    return (tail / tail[0]).sqrt()


def _sampled_symbol(taps: Tensor, axis: int, length: int, n_lines: int) -> tuple[Tensor, list[Tensor]]:
    """Evaluate the symbol between the torus's frequencies, where symmetric kernels have their zeros.

    Returns:
        The symbol `(n_lines, length, C_out, C_in)`, and the angles along each axis: `(n_lines, 1)` along the edge, and
        `(length,)` away from it.
    """
    along, sizes = move_ahead(taps, axis), list(taps.shape[2:])
    n_taps = sizes.pop(axis)
    inwards = (torch.arange(length, dtype=taps.dtype, device=taps.device) + 0.5) * (2 * math.pi / length)
    edge = edge_angles(n_lines, len(sizes), taps)
    # From the middle tap, so that distances in the response are those between pixels.
    phase = inwards[:, None] * (torch.arange(n_taps, device=taps.device) - (n_taps - 1) // 2)
    waves = torch.polar(torch.ones_like(phase), phase)
    lines = torch.einsum("oijk,lk->ljoi", along.to(waves.dtype), edge_waves(edge, tuple(sizes)))
    angles = list(edge[..., None].unbind(1))
    angles.insert(axis, inwards)
    return torch.einsum("nj,ljoi->lnoi", waves, lines), angles


def _response(symbol: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the symbol at every frequency, `(L, N, C_in, C_out)`, and report where that failed."""
    n_outputs, n_inputs = symbol.shape[-2:]
    # Contiguous, since torch's batched product of complex matrices is up to a hundred times slower otherwise.
    adjoint = symbol.mH.resolve_conj().contiguous()
    diagonal = weight[..., None, None] * torch.eye(min(n_outputs, n_inputs), dtype=symbol.dtype, device=symbol.device)
    if n_outputs == n_inputs and not synchronize.holds_anywhere(weight):
        identity = torch.eye(n_outputs, dtype=symbol.dtype, device=symbol.device).expand_as(symbol)
        result = torch.linalg.solve_ex(symbol, identity)
        return result.result, result.info
    if n_outputs >= n_inputs:
        result = torch.linalg.solve_ex(adjoint @ symbol + diagonal, adjoint)
        return result.result, result.info
    # K^H (K K^H + w)^-1 by its adjoint is the smaller system if there are fewer outputs.
    result = torch.linalg.solve_ex(symbol @ adjoint + diagonal, symbol)
    return result.result.mH, result.info
