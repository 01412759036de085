"""The modes of an image that a boundary loses, from the roots of det K(z) along one axis.

Along one axis, at one frequency θ of the others, a kernel is the matrix polynomial P(z) = Σ_j K_j(θ) z^j. An image that
fades away from the edge as z^m, |z| < 1, comes through as zero if it also obeys the boundary rule, which is a condition
for each of the p border pixels and C channels. #{|z| < 1} − C·p such modes are left at the start of the axis, and
#{|z| > 1} − C·p′ at its end. For `same` these are the winding number of det K around zero and its negative; other
paddings and even kernels only change p and p′. Modes at one end that data at the other end would have to determine have
singular values of the order (1 − ρ²)ρⁿ, n pixels apart, or ρⁿ / n where ρ is nearly 1 and the symbol itself small.

The rule counts by determinants: it takes the partial indices to be as equal as they can be, which all kernels but a set
of measure zero fulfill (Gohberg and Krein, "Systems of integral equations on a half line with kernels depending on the
difference of arguments", Uspekhi Matematicheskikh Nauk 13, 1958). Groups of channels that never meet, the practical
exception, are counted one by one. Corners are left out.

Source: Böttcher and Grudsky, "Toeplitz band matrices with exponentially growing condition numbers", Electronic Journal
of Linear Algebra 5, 1999.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.diagnostics.edge_waves import edge_angles, edge_waves, move_ahead
from deconv_cli.operators.spectrum import single_threaded
from deconv_cli.vocabulary import Size

# Bounds on the work of one axis: frequencies looked at, and frequencies times the cube of the pencil's order, which
# counts several times where eigenvectors are needed.
MAX_LINES = 64
MIN_LINES = 4
MAX_OPERATIONS = 1e7
COST_OF_VECTORS = 4
MAX_ORDER = 320
# Roots nearer to the unit circle than this count for whichever side suits the boundary: their modes fade over more than
# ten thousand pixels, and the symbol itself all but vanishes there.
CIRCLE_WIDTH = 1e-4
# Outer taps below this fraction of the largest move no root that matters, but make the pencil larger.
NEGLIGIBLE_TAP = 1e-12
# A root of a few outputs of the kernel, taken at random, is one of all of them if P(z)u vanishes to this accuracy.
SHARED_ROOT_DEFECT = 1e-6
N_SHIFTS = 8


@dataclass(frozen=True)
class BorderModes:
    """The modes that a boundary leaves undetermined, at each of the frequencies that were looked at.

    Attributes:
        n_null: modes at either end in the null space, which come through as zero, for each frequency, shape `(n,)`.
        n_left_null: outputs at either end that no image reaches, shape `(n,)`.
        n_modes: the smaller of the two, shape `(n,)`: what is lost at one end only for lack of data from the other.
            The rest of the null space is that of a convolution with fewer outputs than inputs.
        singular_values: an estimate of theirs, in units of the root mean square of the symbol's, shape `(n, m)`,
            infinite where a frequency has fewer than `m`; right in its order of magnitude.
        weight: edge positions that one frequency stands for.
    """

    n_null: Tensor
    n_left_null: Tensor
    n_modes: Tensor
    singular_values: Tensor
    weight: float

    def estimate(self, counts: Tensor) -> float:
        """Add up counts of some frequencies to an estimate for all of them."""
        return float(counts.sum()) * self.weight


@dataclass(frozen=True)
class _Roots:
    """Roots of one group of like blocks of channels.

    Attributes:
        moduli: |z| in ascending order, shape `(lines, order)`; NaN in the place of what is no root of all outputs.
        n_channels: channels of the unknown.
        before: empty taps that were cut off at the start; each makes up for one border pixel.
        after: the same at the end.
        is_square: there are as many outputs as inputs.
        is_adjoint: the roots are those of the adjoint, whose borders are the kernel's complement.
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
    """The roots of a kernel's polynomial along one axis, over frequencies of the others.

    Attributes:
        groups: roots, by groups of channels that never meet.
        n_lines: frequencies looked at.
    """

    groups: tuple[_Roots, ...]
    n_lines: int

    def windings(self, pads: Size) -> tuple[int, int]:
        """Find the least and the largest excess of roots over border conditions at the start of the axis.

        For `same` this is the range of the winding number, and (0, 0) is harmless. One pixel more before the image
        lowers it by the number of channels. (0, 0) where no group of channels is square, so that none has a
        determinant.

        Args:
            pads: border pixels before and after the image.
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

        Args:
            pads: border pixels before and after the image.
            length: pixels of the image along the axis.
            edge: pixels along the edge, that is of the other axes.
        """
        return tuple(group.border_modes(pads, length, edge / self.n_lines) for group in self.groups)


def _vanishing_values(moduli: Tensor, inside: Tensor, at_start: Tensor, n_modes: Tensor, length: int) -> Tensor:
    """Estimate the singular values from the `n_modes` slowest roots of the end where they are; ρ = 0 past the last."""
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

    Args:
        taps: shape `(C_out, C_in, *k)`.
        axis: of space; of a picture 0 for the rows, whose edges are top and bottom, 1 for the columns.
        edge: pixels along the edge; more frequencies than it has are not looked at, nor more than `MAX_LINES`.

    Returns:
        `None` if the channels are too many for the test, or if they depend on one another.
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
    """Split a kernel by channels that never meet; like groups are stacked, `(n, C_out, C_in, k, n_edge)`."""
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
    """Find the roots of like blocks at each of the waves along an edge; `None` if they have no determinant.

    Args:
        blocks: shape `(n, C_out, C_in, k, n_edge)`.
        waves: shape `(lines, n_edge)`.
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
    """Find |z| for the roots of Σ_j P_j z^j, P_j of full column rank.

    Shifting to a point z₀ of the unit circle and inverting makes every root finite, those at zero and at infinity too:
    μ = z₀ / (z − z₀) are the eigenvalues of z₀(A − z₀B)⁻¹B, with the companion pencil A − zB.

    Args:
        coefficients: complex, shape `(n, degree + 1, C_out, C_in)` with `C_out >= C_in`.

    Returns:
        Ascending, shape `(n, C_in · degree)`; `None` if the polynomial is singular at every z.
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
    # A determinant that rounding alone made other than zero belongs to channels that depend on one another.
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
