"""The modes of an image that a boundary loses, counted from the zeros of det K(z) along each axis.

Along one axis, at one frequency θ of the others, a kernel is the matrix polynomial P(z) = Σ_j K_j(θ) z^j. An image that
fades away from the edge as z^m, |z| < 1, has zero output if it also obeys the boundary rule, which is a condition for
each of the p border pixels and C channels. So #{|z| < 1} − C·p such modes remain at the start of the axis, and #{|z| >
1} − C·p′ at its end. For `same` these are the winding number of det K around zero and its negative; other paddings and
even kernels only change p and p′. If only data at the other end could determine the modes at one end, their singular
values are of the order (1 − ρ²)ρⁿ, n pixels apart, or ρⁿ / n where ρ is nearly 1 and the symbol itself small.

Counting by determinants assumes that the partial indices are as equal as possible, which is true for all kernels but a
set of measure zero (Gohberg and Krein, "Systems of integral equations on a half line with kernels depending on the
difference of arguments", Uspekhi Matematicheskikh Nauk 13, 1958). Groups of channels that never meet, the practical
exception, are counted one by one. With unequal numbers of channels no image along an edge escapes all outputs, unless
all outputs have common zeros, which are not looked for. Corners are ignored.

Source: Böttcher and Grudsky, "Toeplitz band matrices with exponentially growing condition numbers", Electronic Journal
of Linear Algebra 5, 1999.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.operators.geometry import Pads
from deconv_cli.operators.spectrum import single_threaded
from deconv_cli.vocabulary import Size

# Multiples of the golden section modulo one are as evenly spread as any number of points can be.
GOLDEN_SECTION = (math.sqrt(5) - 1) / 2
# Bounds on the work of one axis: frequencies, and frequencies times the cube of the pencil's order.
MIN_LINES, MAX_LINES = 4, 64
MAX_OPERATIONS = 1e7
MAX_ORDER = 320
# Zeros nearer to the unit circle than this count for whichever side suits the boundary: their modes fade over more than
# ten thousand pixels, and the symbol itself nearly vanishes there.
CIRCLE_WIDTH = 1e-4
# Outer taps below this fraction of the largest move no zero that matters, but make the pencil larger.
NEGLIGIBLE_TAP = 1e-12
N_SHIFTS = 8


def move_ahead(taps: Tensor, axis: int) -> Tensor:
    """Put one axis of space of taps `(C_out, C_in, *k)` first, and join the others: `(C_out, C_in, k, n_edge)`."""
    ahead = taps.movedim(2 + axis, 2)
    return ahead.reshape(*ahead.shape[:3], -1)


def edge_angles(n_lines: int, n_axes: int, like: Tensor) -> Tensor:
    """Spread angles evenly over half of the frequencies along an edge, between the zeros of symmetric kernels.

    The other half follows by symmetry. Shape `(n_lines, n_axes)`, from 0 to π along the first and to 2π along the
    second axis of the edge.
    """
    steps = torch.arange(n_lines, dtype=like.dtype, device=like.device) + 0.5
    along = [steps * (math.pi / n_lines), (steps * GOLDEN_SECTION % 1) * (2 * math.pi)]
    return torch.stack(along, dim=-1)[:, :n_axes]


def edge_waves(angles: Tensor, sizes: Size) -> Tensor:
    """Tabulate the waves of angles `(n_lines, n_axes)` at the taps along an edge: complex, `(n_lines, prod(sizes))`."""
    phase = angles.new_zeros(len(angles), 1)
    for angle, n_taps in zip(angles.unbind(-1), sizes, strict=True):
        steps = angle[:, None] * torch.arange(n_taps, device=angles.device)
        phase = (phase[:, :, None] + steps[:, None]).flatten(1)
    return torch.polar(torch.ones_like(phase), phase)


def count_lost_modes(
    taps: Tensor, pads: Pads, image_size: Size, threshold: float
) -> tuple[int, int, tuple[Size, ...], int] | None:
    """Count the modes that a boundary loses, on the CPU and in double precision, for taps `(C_out, C_in, *k)`.

    Singular values below the threshold are lost; it is in units of the root mean square of the symbol's.

    Returns:
        Four results: about how many singular values vanish as the image grows, though those of the symbol do not; how
            many are below the threshold at this size; for each axis the least and the largest winding number of det K
            over the frequencies of the other axes; the number of tested frequencies along the edges. `None` if there
            are too many channels, or if they depend on one another.
    """
    wide = taps.detach().cpu().double()
    groups = [group for group in _separate_channels(wide) if group.shape[1] == group.shape[2]]
    totals = torch.zeros(len(groups), 4, dtype=torch.float64)
    windings, n_frequencies = list[Size](), 0
    for axis, length in enumerate(image_size):
        n_edge = math.prod(image_size) // length
        n_lines = _choose_n_lines(groups, taps.shape[2 + axis], n_edge)
        if n_lines is None:
            return None
        angles = edge_angles(n_lines, len(image_size) - 1, wide)
        excess = []
        for number, group in enumerate(groups):
            counts = _count_along(group, axis, angles, (pads.before[axis], pads.after[axis]), length, threshold)
            if counts is None:
                return None
            excess.append(counts[0])
            totals[number] += counts[1:].sum(dim=1) * (n_edge / n_lines)
        every = torch.cat(excess) if excess else torch.zeros(1)
        windings.append((int(every.min()), int(every.max())))
        n_frequencies += n_lines
    null, left_null, matched, lost = totals.unbind(1)
    # Modes in the null space along one axis and surplus data along another are matched around the corners.
    around_corners = torch.minimum(null, left_null) - matched
    n_border, n_lost = ((found + around_corners).sum() for found in (matched, lost))
    return _rounded(float(n_border)), _rounded(float(n_lost)), tuple(windings), n_frequencies


def _choose_n_lines(groups: list[Tensor], n_taps: int, n_edge: int) -> int | None:
    """Choose how many of `n_edge` frequencies along an edge are tested; `None` if a pencil is too large."""
    orders = [(n_taps - 1) * group.shape[1] for group in groups]
    if max(orders, default=0) > MAX_ORDER:
        return None
    cost = max(sum(len(group) * order**3 for group, order in zip(groups, orders, strict=True)), 1)
    return max(min(MAX_LINES, -(-n_edge // 2), int(MAX_OPERATIONS / cost)), MIN_LINES)


def _rounded(estimate: float) -> int:
    """Round, but not to zero."""
    return max(round(estimate), int(estimate > 0))


def _separate_channels(taps: Tensor) -> list[Tensor]:
    """Split a kernel by channels that never meet; groups of one shape are stacked, `(n, C_out, C_in, *k)`."""
    meets = taps.flatten(2).abs().amax(2) > 0
    linked = (meets.double().T @ meets.double()) > 0
    for _ in range(max(taps.shape[1] - 1, 1).bit_length()):
        linked = (linked.double() @ linked.double()) > 0
    by_shape: dict[tuple[int, int], list[Tensor]] = {}
    pending = meets.any(0)
    while pending.any():
        inputs = linked[int(pending.nonzero()[0])]
        outputs = meets[:, inputs].any(1)
        block = taps[outputs][:, inputs]
        by_shape.setdefault((block.shape[0], block.shape[1]), []).append(block)
        pending = pending & ~inputs
    return [torch.stack(blocks) for blocks in by_shape.values()]


def _count_along(group: Tensor, axis: int, angles: Tensor, pads: Size, length: int, threshold: float) -> Tensor | None:
    """Count the modes of square blocks `(n, C, C, *k)` along an axis, at angles `(lines, n_axes − 1)` along its edge.

    Returns:
        Five counts for each block and line, shape `(5, n · lines)`: the excess of zeros over conditions at the start of
        the axis, modes in the null space, outputs that no image reaches, the smaller of the last two counts, and the
        lost ones among these. `None` if the channels depend on one another.
    """
    along = torch.stack([move_ahead(block, axis) for block in group])
    largest = along.abs().amax((0, 1, 2, 4))
    kept = (largest > NEGLIGIBLE_TAP * largest.max()).nonzero().flatten()
    first, last = int(kept[0]), int(kept[-1])
    waves = edge_waves(angles, tuple(n for other, n in enumerate(group.shape[3:]) if other != axis))
    moduli = _moduli_of_zeros(torch.einsum("boijk,lk->bljoi", along[..., first : last + 1, :].to(waves.dtype), waves))
    if moduli is None:
        return None
    # An empty tap that was removed makes up for a border pixel.
    at_start, at_end = (group.shape[1] * n for n in (pads[0] - first, pads[1] - (len(largest) - 1 - last)))
    surely, perhaps = (moduli < 1 - CIRCLE_WIDTH).sum(-1), (moduli <= 1 + CIRCLE_WIDTH).sum(-1)
    inside = torch.minimum(torch.maximum(surely, torch.full_like(surely, at_start)), perhaps)
    start, end = inside - at_start, moduli.shape[-1] - inside - at_end
    surplus, deficit = start.clamp_min(0) + end.clamp_min(0), (-start).clamp_min(0) + (-end).clamp_min(0)
    matched = torch.minimum(surplus, deficit)
    is_inside = torch.arange(moduli.shape[-1]) < inside[:, None]
    rates = torch.where(is_inside == (start > 0)[:, None], torch.where(is_inside, moduli, 1 / moduli), 0.0)
    slowest = rates.nan_to_num(0).clamp_max(1).sort(descending=True).values
    values = (1 - slowest.square()).clamp_min(1 / length) * slowest**length
    # Past the last zero the modes fade at once.
    n_slow = ((values < threshold) & (torch.arange(moduli.shape[-1]) < matched[:, None])).sum(-1)
    lost = n_slow + (matched - moduli.shape[-1]).clamp_min(0)
    return torch.stack([start, surplus, deficit, matched, lost])


def _moduli_of_zeros(coefficients: Tensor) -> Tensor | None:
    """Find |z| for the zeros of det Σ_j P_j z^j in ascending order, shape `(n · lines, C · degree)`.

    A shift to a point z₀ of the unit circle and inversion make every zero finite, at zero and at infinity too: μ = z₀ /
    (z − z₀) are the eigenvalues of z₀(A − z₀B)⁻¹B, with the companion pencil A − zB. `None` if a polynomial of the
    coefficients `(n, lines, degree + 1, C, C)` is singular at every z.
    """
    square = coefficients.flatten(0, 1)
    degree, n_channels = square.shape[1] - 1, square.shape[2]
    with single_threaded(square.device):
        shift = _regular_points(square)
        if shift is None or degree == 0:
            return None if shift is None else square.real.new_zeros(len(square), 0)
        order = n_channels * degree
        first = square.new_zeros(len(square), order, order)
        second = torch.zeros_like(first)
        ahead = torch.arange(order - n_channels)
        first[:, ahead, ahead + n_channels] = 1
        second[:, ahead, ahead] = 1
        first[:, -n_channels:] = -square[:, :-1].transpose(1, 2).flatten(2)
        second[:, -n_channels:, -n_channels:] = square[:, -1]
        mu = torch.linalg.eigvals(shift * torch.linalg.solve(first - shift * second, second))
    return ((1 + mu).abs() / mu.abs()).sort().values


def _regular_points(square: Tensor) -> Tensor | None:
    """Pick the point of the unit circle with the largest determinant, shape `(n, 1, 1)`; `None` if all vanish."""
    angle = 2 * math.pi * (torch.arange(N_SHIFTS, dtype=torch.float64) + 0.3) / N_SHIFTS
    power = angle[:, None] * torch.arange(square.shape[1])
    values = torch.einsum("sj,njab->nsab", torch.polar(torch.ones_like(power), power), square)
    scale = square.abs().sum(1).amax((-2, -1)).clamp_min(1e-300)
    best = torch.linalg.slogdet(values / scale[:, None, None, None]).logabsdet.argmax(1)
    # If only rounding makes the determinant nonzero, the channels depend on one another.
    singular = torch.linalg.svdvals(values[torch.arange(len(values)), best])
    if (singular[:, -1] <= 1e-12 * singular[:, 0]).any():
        return None
    return torch.polar(torch.ones_like(angle), angle)[best, None, None]
