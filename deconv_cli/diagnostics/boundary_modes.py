"""The modes of an image that a boundary loses, counted from the roots of det K(z) along each axis.

Along one axis, at one frequency θ of the others, a kernel is the matrix polynomial P(z) = Σ_j K_j(θ) z^j. An image that
fades away from the edge as z^m, |z| < 1, has zero output if it also obeys the boundary rule, which is a condition for
each of the p border pixels and C channels. So #{|z| < 1} − C·p such modes remain at the start of the axis, and #{|z| >
1} − C·p′ at its end. For `same` these are the winding number of det K around zero and its negative; other paddings and
even kernels only change p and p′. If only data at the other end could determine the modes at one end, their singular
values are of the order (1 − ρ²)ρⁿ, n pixels apart, or ρⁿ / n where ρ is nearly 1 and the symbol itself small.

Counting by determinants assumes that the partial indices are as equal as possible, which is true for all kernels but a
set of measure zero (Gohberg and Krein, "Systems of integral equations on a half line with kernels depending on the
difference of arguments", Uspekhi Matematicheskikh Nauk 13, 1958). Groups of channels that never meet, the practical
exception, are counted one by one. Corners are ignored.

Source: Böttcher and Grudsky, "Toeplitz band matrices with exponentially growing condition numbers", Electronic Journal
of Linear Algebra 5, 1999.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.geometry import Geometry, Pads
from deconv_cli.operators.spectrum import single_threaded
from deconv_cli.vocabulary import Size

# Multiples of the golden section modulo one are as evenly spread as any number of points can be.
GOLDEN_SECTION = (math.sqrt(5) - 1) / 2
# Bounds on the work of one axis: frequencies, and frequencies times the cube of the pencil's order, which counts
# several times if eigenvectors are needed.
MAX_LINES = 64
MIN_LINES = 4
MAX_OPERATIONS = 1e7
COST_OF_VECTORS = 4
MAX_ORDER = 320
# Roots nearer to the unit circle than this count for whichever side suits the boundary: their modes fade over more than
# ten thousand pixels, and the symbol itself nearly vanishes there.
CIRCLE_WIDTH = 1e-4
# Outer taps below this fraction of the largest move no root that matters, but make the pencil larger.
NEGLIGIBLE_TAP = 1e-12
# A root of random combinations of the outputs is one of all outputs if P(z)u vanishes to this accuracy.
SHARED_ROOT_DEFECT = 1e-6
N_SHIFTS = 8


def move_ahead(taps: Tensor, axis: int) -> Tensor:
    """Put one axis of space of taps `(C_out, C_in, *k)` first, and join the others: `(C_out, C_in, k, n_edge)`."""
    ahead = taps.movedim(2 + axis, 2)
    return ahead.reshape(*ahead.shape[:3], -1)


def edge_angles(n_lines: int, n_axes: int, like: Tensor) -> Tensor:
    """Spread angles evenly over half of the frequencies along an edge, between the zeros of symmetric kernels.

    The other half is alike by symmetry. Shape `(n_lines, n_axes)`, from 0 to π along the first and to 2π along the
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


@dataclass(frozen=True)
class BorderModes:
    """The modes that a boundary leaves undetermined, at each of n frequencies.

    Attributes:
        n_null: modes at either end in the null space, shape `(n,)`.
        n_left_null: outputs at either end that no image reaches, shape `(n,)`.
        n_modes: the smaller of the two, shape `(n,)`: modes that data from the other end could determine. The rest of
            the null space is that of a convolution with fewer outputs than inputs.
        singular_values: the order of magnitude of theirs, in units of the root mean square of the symbol's, shape
            `(n, m)`; infinite if a frequency has fewer than `m`.
        weight: edge positions per frequency.
    """

    n_null: Tensor
    n_left_null: Tensor
    n_modes: Tensor
    singular_values: Tensor
    weight: float

    def estimate(self, counts: Tensor) -> float:
        """Extrapolate counts at some frequencies to all of them."""
        return float(counts.sum()) * self.weight


@dataclass(frozen=True)
class _Roots:
    """Roots of one group of like blocks of channels.

    Attributes:
        moduli: |z| in ascending order, shape `(lines, order)`; NaN for a root that not all outputs share.
        n_channels: channels of the unknown.
        before: empty taps that were removed at the start; each compensates one border pixel.
        after: the same at the end.
        is_square: there are as many outputs as inputs.
        is_adjoint: the roots are those of the adjoint, whose borders are the complement of the kernel's.
        reach: kernel length − 1.
    """

    moduli: Tensor
    n_channels: int
    before: int
    after: int
    is_square: bool
    is_adjoint: bool
    reach: int

    def excess(self, pads: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Count roots less conditions at the start and the end, shape `(lines,)` each, and the roots at the start."""
        before, after = (self.reach - pads[0], self.reach - pads[1]) if self.is_adjoint else pads
        conditions = self.n_channels * (before - self.before), self.n_channels * (after - self.after)
        total = (~self.moduli.isnan()).sum(-1)
        surely = (self.moduli < 1 - CIRCLE_WIDTH).sum(-1)
        perhaps = (self.moduli <= 1 + CIRCLE_WIDTH).sum(-1)
        inside = torch.minimum(torch.maximum(surely, torch.full_like(surely, conditions[0])), perhaps)
        return inside - conditions[0], total - inside - conditions[1], inside

    def border_modes(self, pads: Size, length: int, weight: float) -> BorderModes:
        start, end, inside = self.excess(pads)
        surplus, deficit = start.clamp_min(0) + end.clamp_min(0), (-start).clamp_min(0) + (-end).clamp_min(0)
        n_modes = torch.minimum(surplus, deficit)
        values = _vanishing_values(self.moduli, inside, start > 0, n_modes, length)
        n_null, n_left_null = (deficit, surplus) if self.is_adjoint else (surplus, deficit)
        return BorderModes(n_null, n_left_null, n_modes, values, weight)


@dataclass(frozen=True)
class AxisRoots:
    """The roots of a kernel's polynomial along one axis, by groups of channels that never meet, at some frequencies."""

    groups: tuple[_Roots, ...]
    n_lines: int

    def windings(self, pads: Size) -> tuple[int, int]:
        """Find the least and the largest excess of roots over border conditions at the start of the axis.

        For `same` this is the range of the winding number, and (0, 0) is harmless. One more pixel before the image
        lowers it by the number of channels. It is (0, 0) if no group of channels is square and so has a determinant.
        """
        excess = [group.excess(pads)[0] for group in self.groups if group.is_square]
        every = torch.cat(excess) if excess else torch.zeros(1)
        return int(every.min()), int(every.max())

    @property
    def nearest_root(self) -> float:
        """The modulus of the root nearest to the unit circle, turned inside: 1 for a singular symbol, 0 for none."""
        rates = [torch.minimum(group.moduli, 1 / group.moduli).nan_to_num(0).flatten() for group in self.groups]
        every = torch.cat(rates)
        return float(every.max()) if every.numel() else 0.0

    def border_modes(self, pads: Size, length: int, edge: int) -> tuple[BorderModes, ...]:
        """Count the modes at one end that only data at the other end could determine, for each group of channels.

        The axis has `length` pixels and `pads` before and after them, and its edge has `edge` pixels.
        """
        return tuple(group.border_modes(pads, length, edge / self.n_lines) for group in self.groups)


def _vanishing_values(moduli: Tensor, inside: Tensor, at_start: Tensor, n_modes: Tensor, length: int) -> Tensor:
    """Estimate the singular values from the `n_modes` slowest roots of their end; ρ = 0 past the last."""
    rank = torch.arange(moduli.shape[-1])
    is_inside = rank < inside[:, None]
    rates = torch.where(is_inside == at_start[:, None], torch.where(is_inside, moduli, 1 / moduli), 0.0)
    slowest = rates.nan_to_num(0).clamp_max(1).sort(descending=True).values
    width = int(n_modes.max())
    slowest = functional.pad(slowest, (0, max(width - slowest.shape[-1], 0)))[:, :width]
    values = (1 - slowest.square()).clamp_min(1 / length) * slowest**length
    return torch.where(torch.arange(width) < n_modes[:, None], values, math.inf)


def axis_roots(taps: Tensor, axis: int, edge: int) -> AxisRoots | None:
    """Find the roots of a kernel's polynomial along one axis, on the CPU and in double precision.

    There are at most as many frequencies as pixels along the edge, `edge`. `None` if there are too many channels, or if
    they depend on one another.
    """
    along = move_ahead(taps.detach().cpu().double(), axis)
    blocks = _separate_channels(along)
    orders = [(block.shape[-2] - 1) * min(block.shape[1:3]) for block in blocks]
    if max(orders) > MAX_ORDER:
        return None
    cost = sum(
        len(block) * max(order, 1) ** 3 * (1 if block.shape[1] == block.shape[2] else COST_OF_VECTORS)
        for block, order in zip(blocks, orders, strict=True)
    )
    n_lines = max(min(MAX_LINES, -(-edge // 2), int(MAX_OPERATIONS / cost)), MIN_LINES)
    sizes = tuple(n for other, n in enumerate(taps.shape[2:]) if other != axis)
    waves = edge_waves(edge_angles(n_lines, len(sizes), along), sizes)
    groups = [_group_roots(block, waves) for block in blocks]
    if any(group is None for group in groups):
        return None
    return AxisRoots(tuple(group for group in groups if group is not None), n_lines)


def _separate_channels(taps: Tensor) -> list[Tensor]:
    """Split a kernel by channels that never meet; groups of one shape are stacked, `(n, C_out, C_in, k, n_edge)`."""
    meets = taps.abs().amax((-2, -1)) > 0
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


def _group_roots(blocks: Tensor, waves: Tensor) -> _Roots | None:
    """Find the roots of blocks `(n, C_out, C_in, k, n_edge)` at each of the waves `(lines, n_edge)` along an edge.

    `None` if they have no determinant.
    """
    largest = blocks.abs().amax((0, 1, 2, 4))
    kept = (largest > NEGLIGIBLE_TAP * largest.max()).nonzero().flatten()
    first, last = int(kept[0]), int(kept[-1])
    reach = blocks.shape[-2] - 1
    is_square = blocks.shape[1] == blocks.shape[2]
    is_adjoint = blocks.shape[1] < blocks.shape[2]
    before, after = first, reach - last
    trimmed = blocks[..., first : last + 1, :]
    if is_adjoint:
        trimmed, before, after = trimmed.transpose(1, 2).flip(-2, -1), after, before
    coefficients = torch.einsum("boijk,lk->bljoi", trimmed.to(waves.dtype), waves).flatten(0, 1)
    moduli = _root_moduli(coefficients)
    if moduli is None:
        return None
    return _Roots(moduli, trimmed.shape[2], before, after, is_square, is_adjoint, reach)


def _root_moduli(coefficients: Tensor) -> Tensor | None:
    """Find |z| for the roots of Σ_j P_j z^j, P_j of full column rank, in ascending order, shape `(n, C_in · degree)`.

    A shift to a point z₀ of the unit circle and inversion make every root finite, at zero and at infinity too: μ = z₀ /
    (z − z₀) are the eigenvalues of z₀(A − z₀B)⁻¹B, with the companion pencil A − zB. `None` if the polynomial of
    coefficients `(n, degree + 1, C_out, C_in)`, `C_out >= C_in`, is singular at every z.
    """
    n, _, n_outputs, n_inputs = coefficients.shape
    degree = coefficients.shape[1] - 1
    square = coefficients
    if n_outputs > n_inputs:
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(n_inputs, n_outputs, generator=generator, dtype=torch.float64)
        square = mix.to(coefficients.dtype) @ coefficients
    with single_threaded(coefficients.device):
        shift = _regular_points(square)
        if shift is None:
            return None
        if degree == 0:
            return coefficients.real.new_zeros(n, 0)
        order = n_inputs * degree
        first = coefficients.new_zeros(n, order, order)
        second = torch.zeros_like(first)
        ahead = torch.arange(order - n_inputs)
        first[:, ahead, ahead + n_inputs] = 1
        second[:, ahead, ahead] = 1
        first[:, -n_inputs:] = -square[:, :-1].transpose(1, 2).flatten(2)
        second[:, -n_inputs:, -n_inputs:] = square[:, -1]
        inverted = shift * torch.linalg.solve(first - shift * second, second)
        if square is coefficients:
            mu = torch.linalg.eigvals(inverted)
            return ((1 + mu).abs() / mu.abs()).sort().values
        mu, vectors = torch.linalg.eig(inverted)
    is_shared = _is_shared(coefficients, shift[..., 0], mu, vectors)
    return torch.where(is_shared, (1 + mu).abs() / mu.abs(), math.nan).sort().values


def _regular_points(square: Tensor) -> Tensor | None:
    """Pick the point of the unit circle with the largest determinant, shape `(n, 1, 1)`; `None` if all vanish."""
    degree = square.shape[1] - 1
    angle = 2 * math.pi * (torch.arange(N_SHIFTS, dtype=torch.float64) + 0.3) / N_SHIFTS
    power = angle[:, None] * torch.arange(degree + 1)
    values = torch.einsum("sj,njab->nsab", torch.polar(torch.ones_like(power), power), square)
    scale = square.abs().sum(1).amax((-2, -1)).clamp_min(1e-300)
    best = torch.linalg.slogdet(values / scale[:, None, None, None]).logabsdet.max(1)
    points = torch.polar(torch.ones_like(angle), angle)[best.indices]
    # If only rounding makes the determinant nonzero, the channels depend on one another.
    singular = torch.linalg.svdvals(values[torch.arange(len(values)), best.indices])
    if (singular[:, -1] <= 1e-12 * singular[:, 0]).any():
        return None
    return points[:, None, None]


def _is_shared(coefficients: Tensor, shift: Tensor, mu: Tensor, vectors: Tensor) -> Tensor:
    """Find which eigenpairs of the mixed outputs are null vectors of every output, shape `(n, order)`."""
    n_terms, n_inputs = coefficients.shape[1], coefficients.shape[3]
    z = shift * (1 + mu) / mu
    is_inside = z.abs() <= 1
    # The eigenvector is (u, zu, z²u, ...): its first block is accurate inside the circle, its last one outside.
    u = torch.where(is_inside[:, None], vectors[:, :n_inputs], vectors[:, -n_inputs:])
    base = torch.where(is_inside, z, mu / (shift * (1 + mu)))
    powers = base[..., None] ** torch.arange(n_terms)
    powers = torch.where(is_inside[..., None], powers, powers.flip(-1))
    image = torch.einsum("nrj,njoi,nir->nor", powers, coefficients, u)
    scale = torch.linalg.vector_norm(coefficients.flatten(1), dim=1)[:, None] * torch.linalg.vector_norm(u, dim=1)
    return torch.linalg.vector_norm(image, dim=1) <= SHARED_ROOT_DEFECT * scale


Roots: TypeAlias = tuple[AxisRoots, ...]
"""The roots of a kernel's polynomial along each axis."""


def count_lost_modes(roots: Roots, pads: Pads, image_size: Size, threshold: float) -> tuple[int, int]:
    """Estimate how many singular values vanish as the image grows though those of the symbol do not.

    Gives all of them, and those below a threshold at this size, in units of the root mean square of the symbol's.
    """
    found = below = 0.0
    by_axis = [
        along.border_modes((before, after), length, math.prod(image_size) // length)
        for along, before, after, length in zip(roots, pads.before, pads.after, image_size, strict=True)
    ]
    for group in zip(*by_axis, strict=True):
        matched = sum(modes.estimate(modes.n_modes) for modes in group)
        # Modes in the null space along one axis and surplus data along another are matched around the corners.
        null = sum(modes.estimate(modes.n_null) for modes in group)
        left_null = sum(modes.estimate(modes.n_left_null) for modes in group)
        around_corners = min(null, left_null) - matched
        found += matched + around_corners
        below += around_corners + sum(modes.estimate((modes.singular_values < threshold).sum(-1)) for modes in group)
    return _rounded(found), _rounded(below)


def _rounded(estimate: float) -> int:
    """Round, but not to zero."""
    return max(round(estimate), int(estimate > 0))


def find_lossless_pads(roots: Roots, geometry: Geometry, threshold: float) -> Pads | None:
    """Find pads of the same total width, as near as possible to the given ones, that lose nothing; `None` for none."""
    pads, size = geometry.pads, geometry.image_size
    before = []
    for axis, (given, total) in enumerate(zip(pads.before, pads.total, strict=True)):
        edge = math.prod(size) // size[axis]
        for start in sorted(range(total + 1), key=lambda start: abs(start - given)):
            groups = roots[axis].border_modes((start, total - start), size[axis], edge)
            if not any(bool((modes.singular_values < threshold).any()) for modes in groups):
                before.append(start)
                break
        else:
            return None
    shifted = Pads(tuple(before), tuple(total - start for start, total in zip(before, pads.total, strict=True)))
    return shifted if count_lost_modes(roots, shifted, size, threshold)[1] == 0 else None
