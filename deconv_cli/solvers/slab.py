"""The exact answer if a torus lacks nothing but outputs or zeros.

On the torus of `embedding.py`, enlarged to lengths that are fast for the FFT, the missing data lie outside of boxes
(`closed_slab.py`): in a slab across each axis. FFTs along a slab solve it. The sum of these solutions
preconditions conjugate gradients on the whole system (additive Schwarz; Smith, Bjørstad and Gropp, Domain
Decomposition, 1996, chapter 1). Only the edges in which slabs meet are left to the iteration, so the number of
iterations does not grow with the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import relative, squared_modulus
from deconv_cli.operators.circulant import MAX_PAIRS_AS_PLANES, PartialSymbol, next_fast_size, to_float64
from deconv_cli.operators.convolution import ValidCorrelation
from deconv_cli.operators.differences import Difference
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.linear_operator import Shape
from deconv_cli.operators.torus_filter import Filter, TorusFilter, write_box
from deconv_cli.regularizers import GRADIENT, find_penalty
from deconv_cli.solvers.cgls import dot, solve_definite
from deconv_cli.solvers.closed_slab import ClosedSlab, OutsideBox, OutsideBoxes
from deconv_cli.solvers.embedding import TorusLayout
from deconv_cli.solvers.inverse import BorderInverse, Inverse
from deconv_cli.solvers.missing_data import Completion, MissingDifferences, MissingOutputs, TiedPixels
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import GradientLog, StoppingRule
from deconv_cli.solvers.solver import CALL_OPERATIONS, Cost, Solver, general_refusal, symbol_bytes, transform_operations
from deconv_cli.solvers.strip import STRIP
from deconv_cli.vocabulary import Size

# The matrices of all slabs have at most as many entries as the torus has places, or this many if that is more.
MIN_MATRIX_NUMBERS = 2**24
# The gradient that a residual leaves is computed once its estimate comes so near to the goal.
NEAR_GOAL = 3.0


def most_numbers(torus: Size) -> int:
    """Return how many entries the matrices of all slabs may have."""
    return max(MIN_MATRIX_NUMBERS, math.prod(torus))


class SlabSystem:
    """The completed problem of one kernel and size.

    Spectra between two steps are those of `TorusFilter`: transformed along all axes but the first.

    Raises:
        SingularSystemError: λ = 0, and the symbol has not full rank.
    """

    def __init__(self, problem: TikhonovProblem) -> None:
        operator = problem.operator
        taps = operator.kernel
        wide = to_float64(taps)
        layout = TorusLayout.plan(operator.geometry, operator.boundary)
        self._n_axes = len(layout.torus)
        # A line is a plane of one row.
        self._lead = (1,) if self._n_axes == 1 else ()
        self._wraps = (*(False for _ in self._lead), *operator.wraps)
        lengths = zip(layout.torus, operator.wraps, strict=True)
        self._torus: Size = (
            *self._lead,
            *(n if is_wrapped else next_fast_size(n, by_parts=self._n_axes > 1) for n, is_wrapped in lengths),
        )
        self._input_shape, self._output_shape = operator.input_shape, operator.output_shape
        self._runs_on = not operator.boundary.is_zero
        self._sigma = problem.sigma_max if problem.lam > 0 else operator.spectrum.sigma_max
        # For λ = 0 the square of the condition number is divided by where pixels are tied.
        needs_float64 = not problem.runs_in_own_precision or (problem.lam == 0 and layout.n_tied > 0)
        self._dtype = wide.dtype if needs_float64 or _takes_plane_differences(problem) else taps.dtype
        wide = wide.reshape(*wide.shape[:2], *self._lead, *wide.shape[2:]) / self._sigma
        symbol = PartialSymbol(wide, self._torus, (0,) * len(self._lead) + layout.origin)
        n_entries, like = max(problem.n_outputs, problem.n_inputs) ** 2, wide.new_empty(0, dtype=self._dtype)
        cuts = n_entries <= MAX_PAIRS_AS_PLANES
        self._filter = TorusFilter(self._torus, like, cuts=cuts, n_entries=n_entries)
        self._completion, boxes = self._complete(problem, layout, symbol)
        self._unknowns = OutsideBoxes(boxes)
        self._slabs = self._close_slabs()

    def _complete(
        self, problem: TikhonovProblem, layout: TorusLayout, symbol: PartialSymbol
    ) -> tuple[Completion, list[OutsideBox]]:
        output_size, image_size = (*self._lead, *layout.output_size), (*self._lead, *layout.image_size)
        penalty = find_penalty(problem.penalty)
        if layout.n_tied > 0:
            tied = TiedPixels(symbol, self._filter, problem.lam, self._dtype)
            return tied, [OutsideBox(symbol.n_inputs, image_size, self._torus)]
        outputs = OutsideBox(symbol.n_outputs, output_size, self._torus)
        if problem.lam == 0 or not penalty.takes_differences:
            return MissingOutputs(symbol, self._filter, problem.lam, self._dtype), [outputs]
        terms = [replace(term, orders=(0,) * len(self._lead) + term.orders) for term in penalty.terms(self._n_axes)]
        boxes = [OutsideBox(symbol.n_inputs, term.observed(image_size, self._wraps), self._torus) for term in terms]
        is_missing = [box.n_unknowns > 0 for box in boxes]
        missing = MissingDifferences(symbol, self._filter, problem.lam, self._dtype, terms, is_missing)
        return missing, [outputs, *(box for box in boxes if box.n_unknowns > 0)]

    def solve(
        self, residual: Tensor | None, gradient: Tensor | None, log: GradientLog, *, closes: bool = False
    ) -> Tensor:
        """Solve (AᴴA + μLᴴL) x = Aᴴ·residual + gradient, until the remaining gradient reaches the log's goal.

        One of the two is given, of shape `(*batch, C_out, *output_size)` or `(*batch, C_in, *size)`. `closes` continues
        the outputs smoothly around the torus at the start: smooth images then need fewer iterations.
        """
        given = residual if residual is not None else gradient
        assert given is not None
        flat, batch = self._flatten(given), given.shape[: -1 - self._n_axes]
        if residual is None:
            image = self._solve_for_inputs(lambda: self._transform(flat), batch, log).div_(self._sigma**2)
        elif isinstance(self._completion, TiedPixels):
            to_inputs = self._completion.inputs
            image = self._solve_for_inputs(
                lambda: self._filter.filter(self._transform(flat), to_inputs, self._input_shape[0]), batch, log
            )
            image.div_(self._sigma)
        else:
            image = self._solve_for_data(flat, batch, log, closes=closes).div_(self._sigma)
        return image.to(given.dtype).reshape(*batch, *self._input_shape)

    def approximate(self, gradient: Tensor, log: GradientLog) -> Tensor:
        """Solve (AᴴA + μLᴴL) x = gradient to the log's goal."""
        return self.solve(None, gradient, log)

    def solve_transposed(self, g: Tensor, log: GradientLog) -> Tensor:
        """Compute the outputs A(AᴴA + μLᴴL)⁺g, shape `(*batch, C_out, *output_size)`."""
        flat, batch = self._flatten(g), g.shape[: -1 - self._n_axes]
        unknowns = self._iterate(self._read(self._transform(flat)), batch, log, 1.0)
        outputs = self._crop(self._transform(flat), self._completion.outputs, self._output_shape)
        outputs += self._crop(self._put(unknowns), self._completion.outputs_of_unknowns, self._output_shape)
        return (outputs / self._sigma).to(g.dtype).reshape(*batch, *self._output_shape)

    def _solve_for_data(self, data: Tensor, batch: tuple[int, ...], log: GradientLog, *, closes: bool) -> Tensor:
        unknowns = self._close(data) if closes and self._runs_on else self._zeros(len(data))
        right = self._take(self._filter.filter(self._transform(data, unknowns), self._completion.apply)).neg_()
        unknowns = self._iterate(right, batch, log, self._sigma, unknowns)
        del right
        return self._crop(self._transform(data, unknowns), self._completion.image, self._input_shape)

    def _solve_for_inputs(self, source: Callable[[], Tensor], batch: tuple[int, ...], log: GradientLog) -> Tensor:
        """Find the unknowns of a gradient, whose spectrum `source` makes twice to save memory."""
        unknowns = self._iterate(self._read(source()), batch, log, 1.0)
        image = self._crop(self._put(unknowns), self._completion.image, self._input_shape)
        image += self._crop(source(), self._completion.image_of_inputs, self._input_shape)
        return image

    def _iterate(
        self, right: Tensor, batch: tuple[int, ...], log: GradientLog, unit: float, start: Tensor | None = None
    ) -> Tensor:
        """Solve for unknowns of B images, a batch of this shape.

        The right-hand side `(B, n)` is overwritten; the solution is added to `start`, by default zero, in place. `unit`
        converts the gradient of a residual to the unit of the log.
        """
        start = self._zeros(len(right)) if start is None else start
        if right.shape[-1] == 0 or log.is_spent:
            return start
        gain = relative(self._gradient_norm(right), dot(right, right).sqrt())

        def measure(residual: Tensor) -> Tensor:
            """Estimate the gradient's norm by the share of the residual that it was before, until that is small."""
            nonlocal gain
            size = dot(residual, residual).sqrt()
            if synchronize.holds_anywhere((unit * gain * size).reshape(batch) <= NEAR_GOAL * log.goal):
                gain = relative(self._gradient_norm(residual), size)
            return unit * gain * size

        def goes_on(remaining: Tensor) -> bool:
            remaining = remaining.reshape(batch)
            log.add(remaining)
            return not log.is_spent and not synchronize.holds_everywhere(remaining <= log.goal)

        return solve_definite(self._apply, self._precondition, right, goes_on, measure, start)

    def _apply(self, vector: Tensor) -> Tensor:
        return self._take(self._filter.filter(self._put(vector), self._completion.apply))

    def _precondition(self, vector: Tensor) -> Tensor:
        result = torch.zeros_like(vector)
        given, solved = map(self._unknowns.split, (vector, result))
        for kind, axis, slab in self._slabs:
            box = self._unknowns.boxes[kind]
            part = box.slab(given[kind], axis)
            slab.solve(part)
            box.add_slab(part, solved[kind], axis)
        return result

    def _close_slabs(self) -> list[tuple[int, int, ClosedSlab]]:
        """Invert the system on the slab across each axis, for each kind of unknowns in it.

        Slabs share the room for matrices: one slab without any costs more iterations than more matrices save in the
        others. Those of differences are thin; they come first, and leave most of the room to those of the outputs.
        """
        n_left, slabs = most_numbers(self._torus), list[tuple[int, int, ClosedSlab]]()
        n_slabs = sum(len(box.axes) for box in self._unknowns.boxes)
        for kind, box in reversed(list(enumerate(self._unknowns.boxes))):
            symbol = self._completion.symbol_of([kind])
            for axis in box.axes:
                width = self._torus[axis] - box.box[axis]
                slab = ClosedSlab(symbol, self._torus, axis, width, n_left // (n_slabs - len(slabs)))
                n_left -= slab.n_numbers
                slabs.append((kind, axis, slab))
        return slabs

    def _gradient_norm(self, residual: Tensor) -> Tensor:
        return self._filter.squares(self._put(residual), self._completion.gradient).sqrt()

    def _read(self, inputs: Tensor) -> Tensor:
        """Compute the right-hand side of a gradient from its spectrum."""
        return self._take(self._filter.filter(inputs, self._completion.read, self._unknowns.n_channels))

    def _close(self, data: Tensor) -> Tensor:
        """Continue outputs smoothly around the torus, and return the part beyond them as unknowns."""
        closed = close_smoothly(data, self._torus)
        vector = self._zeros(len(data))
        outputs = self._unknowns.boxes[0]
        outputs.take(closed, self._unknowns.split(vector)[0], slice(0, self._torus[0]))
        return vector

    def _put(self, vector: Tensor) -> Tensor:
        shape = (len(vector), self._unknowns.n_channels)
        return self._filter.transform(shape, lambda field, planes: self._unknowns.put(vector, field, planes))

    def _take(self, spectrum: Tensor) -> Tensor:
        vector = self._filter.like.new_empty(len(spectrum), self._unknowns.n_unknowns)
        for field, planes in self._filter.fields(spectrum):
            self._unknowns.take(field, vector, planes)
        return vector

    def _zeros(self, n_images: int) -> Tensor:
        return self._filter.like.new_zeros(n_images, self._unknowns.n_unknowns)

    def _transform(self, box: Tensor, unknowns: Tensor | None = None) -> Tensor:
        """Transform fields `(B, C, *size)` at the torus's origin, and unknowns around them."""
        if unknowns is None:
            return self._filter.transform_box(box)

        def fill(field: Tensor, planes: slice) -> None:
            write_box(box, field[:, : box.shape[1]], planes)
            self._unknowns.put(unknowns, field, planes)

        return self._filter.transform((len(box), self._unknowns.n_channels), fill)

    def _crop(self, spectrum: Tensor, apply: Filter, shape: Shape) -> Tensor:
        """Filter a spectrum, and cut fields of `shape` out at the torus's origin, shape `(B, C, *size)`."""
        return self._filter.crop(self._filter.filter(spectrum, apply, shape[0]), (*self._lead, *shape[1:]))

    def _flatten(self, field: Tensor) -> Tensor:
        """Shape fields `(*batch, C, *size)` as `(B, C, *size)`, in the dtype of the arithmetic."""
        size = field.shape[-self._n_axes :]
        return field.to(self._dtype).reshape(-1, field.shape[-1 - self._n_axes], *self._lead, *size)


class ObservedSystem(SlabSystem):
    """The dual problem (AAᴴ + μ) p = y, x = Aᴴp of one channel: few unknowns where few outputs are observed.

    The inverse on the torus, cut to the observed outputs, preconditions it.
    """

    def __init__(self, problem: TikhonovProblem) -> None:
        self._operator, self._weight = problem.operator, problem.weight
        assert isinstance(self._operator.correlation, ValidCorrelation)
        circulant = self._operator.correlation.circulant
        gram = squared_modulus(circulant.blocks.matrices[..., 0, 0]).add_(self._weight)
        self._gram = gram.movedim(0, -1).contiguous().movedim(-1, 0)  # filters work on columns
        self._n_axes = len(circulant.torus)
        self._filter = TorusFilter(circulant.torus, gram.new_empty(0))

    def solve(
        self, residual: Tensor | None, gradient: Tensor | None, log: GradientLog, *, closes: bool = False
    ) -> Tensor:
        """Solve as `SlabSystem.solve`: for a gradient g compute (g − Aᴴ(AAᴴ + μ)⁻¹Ag)/μ."""
        if residual is not None:
            return self._operator.adjoint(self._outputs(residual, log, 1.0))
        assert gradient is not None
        return (gradient - self._operator.adjoint(self.solve_transposed(gradient, log))) / self._weight

    def solve_transposed(self, g: Tensor, log: GradientLog) -> Tensor:
        """Compute the outputs A(AᴴA + μ)⁻¹g = (AAᴴ + μ)⁻¹Ag, shape `(*batch, 1, *output_size)`."""
        return self._outputs(self._operator.forward(g), log, 1 / self._weight)

    def _outputs(self, data: Tensor, log: GradientLog, unit: float) -> Tensor:
        batch = data.shape[: -1 - self._n_axes]
        right = data.reshape(math.prod(batch), -1).clone()
        return self._iterate(right, batch, log, unit, torch.zeros_like(right)).reshape(data.shape)

    def _apply(self, vector: Tensor) -> Tensor:
        return self._convolve(vector, self._multiplying(self._gram))

    def _precondition(self, vector: Tensor) -> Tensor:
        parts = self._filter.parts
        return self._convolve(vector, lambda number, columns: columns.mul_(self._gram[:, parts[number]].reciprocal()))

    def _convolve(self, vector: Tensor, apply: Filter) -> Tensor:
        torus, (_, *size) = self._filter, self._operator.output_shape
        spectrum = torus.filter(self._spectrum(vector), apply, 1, size[0])
        return torus.crop(spectrum, tuple(size)).flatten(1)

    def _gradient_norm(self, residual: Tensor) -> Tensor:
        gain = (self._gram - self._weight).clamp_min_(0).sqrt_()
        return self._filter.squares(self._spectrum(residual), self._multiplying(gain)).sqrt()

    def _multiplying(self, symbol: Tensor) -> Filter:
        return lambda number, columns: columns.mul_(symbol[:, self._filter.parts[number]])

    def _spectrum(self, vector: Tensor) -> Tensor:
        return self._filter.transform_box(vector.reshape(-1, *self._operator.output_shape))


# Images with the channels of input and output that an application keeps at once, for each kind of unknowns; and symbols
# of several channels in double precision that are alive while they are inverted.
N_IMAGES, N_SYMBOLS = 3.5, 12
# Tens of calls of torch to invert the slabs.
N_CALLS = 40
# The dual problem is solved where the torus is this part of that of a kernel as large as the outputs. Measured for
# disks and a microscope: with half of it, slabs are as fast in two dimensions and twice as fast in three.
MIN_PART_OF_TORUS = 0.75
# Least gain of a constant, relative to σmax, of a kernel that passes constants.
MIN_CONSTANT_GAIN = 1e-3


class SlabSolver(Solver):
    """An iteration on the missing data outside the frame, in slabs."""

    why = "everything is diagonal in frequency except for the missing outside of the frame, which an iteration solves"
    takes_mixed = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover problems that lack outputs alone, or zeros alone (padding `full`).

        For λ = 0 there must be at least as many outputs as pixels, or as many pixels as outputs. Penalties on first and
        second differences are covered if outputs alone are missing; in two dimensions kernels too wide for `strip`,
        with λ > 0 and no zeros, and no differences but those of `gradient` for one channel and a kernel that passes
        constants.
        """
        operator = problem.operator
        layout = TorusLayout.plan(operator.geometry, operator.boundary)
        is_single = problem.n_outputs == problem.n_inputs == 1
        is_bounded = find_penalty(problem.penalty) is GRADIENT and is_single and _passes_constants(problem)
        is_free = problem.lam > 0 and layout.n_tied == 0 and (is_bounded or not _differences(problem))
        is_wide = is_free and STRIP.covers(problem)
        if problem.n_dims == 3 and not operator.boundary.is_mixed and not is_wide:
            return (
                "is for one dimension and three, and in two for kernels too wide for strip, with penalty identity, or "
                "gradient for one channel and a kernel whose sum is not zero"
            )
        if operator.boundary.is_periodic or (
            layout.n_tied > 0 and (layout.n_unobserved > 0 or not operator.boundary.is_zero)
        ):
            return (
                "is for boundary unknown, for padding valid, and for padding full with zeros outside, but boundary "
                f"{operator.boundary.name} ties pixels to other pixels, or to zero where outputs are missing"
            )
        orders = [sum(term.orders) for term in find_penalty(problem.penalty).terms(problem.n_dims - 1)]
        if problem.lam > 0 and max(orders) > (0 if layout.n_tied > 0 else 2):
            return (
                "takes penalty identity, and also gradient and laplacian if no pixels are tied, but the penalty is "
                f"{problem.penalty}"
            )
        if problem.lam == 0 and not problem.has_full_rank_by_shape:
            return (
                "needs λ > 0 here, since the outputs do not determine the image, and the image does not allow all "
                "outputs"
            )
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the iterations, each of which transforms the missing data once there and back."""
        # Measured for blurs and layers: 5 iterations at a condition number of 10, 10 to 60 at 1e3, and about as many
        # at 1e4. To invert the slabs takes as long as some more. Differences take up to five times as long, but
        # then the iteration on the whole image takes up to twenty times as many steps as its condition number tells.
        digits = min(6.0, math.log10(problem.condition))
        n_kinds = 1 + len(_differences(problem)) * problem.n_inputs / problem.n_outputs / 2
        n_operations = 2 * transform_operations(problem) * (5 + 4 * digits) + N_CALLS * CALL_OPERATIONS
        layout = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary)
        is_single = problem.n_outputs == problem.n_inputs == 1
        return Cost.of_transforms(
            problem,
            n_operations,
            n_bytes_factored=_symbol_bytes(problem, layout),
            n_bytes_while_built=0 if is_single else symbol_bytes(problem, N_SYMBOLS),
            n_images=N_IMAGES * n_kinds,
        )

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Invert the system on the slabs."""
        least = bound_eigenvalues(problem) if _takes_plane_differences(problem) else None
        return BorderInverse(problem, rule, ObservedSystem if is_dual(problem) else SlabSystem, least)


SLAB = SlabSolver()


def is_dual(problem: TikhonovProblem) -> bool:
    """Return whether `ObservedSystem` solves it: for a kernel nearly as large as the outputs, without differences."""
    layout, n_axes = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary), problem.n_dims - 1
    n_least = MIN_PART_OF_TORUS * 2**n_axes * math.prod(layout.output_size)
    is_single = problem.n_outputs == problem.n_inputs == 1 and not any(problem.operator.wraps)
    is_plain = problem.runs_in_own_precision and not find_penalty(problem.penalty).takes_differences
    is_free = problem.lam > 0 and layout.n_tied == 0 and n_axes > 1
    return is_single and is_plain and is_free and math.prod(layout.torus) >= n_least


def _passes_constants(problem: TikhonovProblem) -> bool:
    """Return whether a constant image is more than rounding noise in the outputs: `bound_eigenvalues` needs it."""
    return MIN_CONSTANT_GAIN * problem.sigma_max < problem.least_constant_gain < math.inf


def _takes_plane_differences(problem: TikhonovProblem) -> bool:
    """Return whether a plane has a penalty on differences: the least eigenvalue is far below λ then."""
    return problem.n_dims == 3 and not problem.operator.boundary.is_mixed and bool(_differences(problem))


def bound_eigenvalues(problem: TikhonovProblem) -> float:
    """Bound the eigenvalues of AᴴA + μLᴴL from below: one channel, penalty gradient, nothing tied.

    Let x be a constant of norm c plus w, which is orthogonal to constants. Then ‖Lx‖² ≥ l‖w‖², where l is the least
    eigenvalue above 0 of the second difference on the longest axis, and ‖Ax‖ ≥ ac − σ‖w‖, where a is the gain of a
    constant and σ is σmax. So ‖Ax‖² + μ‖Lx‖² is at least the least eigenvalue of [[a², −aσ], [−aσ, σ² + μl]]. Where
    ac < σ‖w‖, μl‖w‖² alone is a bound; it is smallest on the edge ac = σ‖w‖, where the form equals it.
    """
    (_, *outputs), (_, *pixels) = problem.operator.output_shape, problem.operator.input_shape
    square = problem.least_constant_gain**2 * math.prod(outputs) / math.prod(pixels)
    smooth = problem.weight * 4 * math.sin(math.pi / (2 * max(pixels))) ** 2
    half = (square + problem.sigma_max**2 + smooth) / 2
    return square * smooth / (half + math.sqrt(half**2 - square * smooth))


def _differences(problem: TikhonovProblem) -> tuple[Difference, ...]:
    penalty = find_penalty(problem.penalty)
    return penalty.terms(problem.n_dims - 1) if problem.lam > 0 and penalty.takes_differences else ()


def _symbol_bytes(problem: TikhonovProblem, layout: TorusLayout) -> int:
    """Estimate the memory of the symbol, of a copy of it, and of the inverses of the slabs."""
    if is_dual(problem):
        return symbol_bytes(problem, 5)
    is_tied = layout.n_tied > 0
    n_channels, box = (problem.n_inputs, layout.image_size) if is_tied else (problem.n_outputs, layout.output_size)
    n_places = math.prod(layout.torus)
    matrices = sum(
        n_places // length * (n_channels * (length - n)) ** 2 // 2 for n, length in zip(box, layout.torus, strict=True)
    )
    is_own = problem.runs_in_own_precision and not is_tied and not _takes_plane_differences(problem)
    itemsize = problem.operator.kernel.itemsize if is_own else 8
    n_numbers = min(most_numbers(layout.torus), matrices) + n_places * n_channels**2
    if _differences(problem):
        n_numbers += n_places * problem.n_outputs * problem.n_inputs
    return 2 * itemsize * n_numbers
