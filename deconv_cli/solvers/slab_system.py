"""The system on what a torus lacks, in any number of dimensions, solved by conjugate gradients on that alone.

On the torus of `embedding.py`, enlarged to lengths that the FFT is fast at, what is missing lies outside of boxes
(`closed_slab.py`): in a slab across each axis. A slab by itself is solved by FFTs along it. The sum
of these solutions preconditions the whole system (additive Schwarz; Smith, Bjørstad and Gropp, Domain Decomposition,
1996, chapter 1), so that nothing but the edges in which slabs meet is left to the iteration: the number of iterations
does not grow with the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import MAX_PAIRS_AS_PLANES, PartialSymbol, next_fast_size, to_float64
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.linear_operator import Shape
from deconv_cli.operators.torus_filter import Filter, TorusFilter, write_box
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.closed_slab import ClosedSlab, OutsideBox, OutsideBoxes, SlabPlanes
from deconv_cli.solvers.completions import Completion, MissingDifferences, MissingOutputs, TiedPixels
from deconv_cli.solvers.embedding import TorusLayout
from deconv_cli.solvers.iteration_log import GradientLog
from deconv_cli.solvers.krylov import dot, solve_definite
from deconv_cli.solvers.norms import relative
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.vocabulary import Size

# The matrices of all slabs have at most as many entries as the torus has places, or this many if that is more.
MIN_MATRIX_NUMBERS = 2**22
# The gradient that a residual leaves is computed once its estimate comes so near to the goal.
NEAR_GOAL = 3.0


def most_numbers(torus: Size) -> int:
    """Return how many entries the matrices of all slabs may have."""
    return max(MIN_MATRIX_NUMBERS, math.prod(torus))


class SlabSystem:
    """The completed problem of one kernel and size.

    Spectra between two steps are those of `TorusFilter`: transformed along all axes but the first.

    Args:
        problem: one that the solver covers.

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
        self._torus: Size = (*self._lead, *(n if is_wrapped else next_fast_size(n) for n, is_wrapped in lengths))
        self._input_shape, self._output_shape = operator.input_shape, operator.output_shape
        self._runs_on = not operator.boundary.is_zero
        self._sigma = problem.sigma_max if problem.lam > 0 else operator.spectrum.sigma_max
        # For λ = 0 the square of the condition number is divided by where pixels are tied.
        needs_float64 = not problem.runs_in_own_precision or (problem.lam == 0 and layout.n_tied > 0)
        self._dtype = wide.dtype if needs_float64 else taps.dtype
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
        """Find out what is missing, and where."""
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
        """Solve (AᴴA + μLᴴL) x = Aᴴ·residual + gradient, until the gradient that remains is as small as the log's goal.

        Args:
            residual: shape `(*batch, C_out, *output_size)`; `None` for zero.
            gradient: shape `(*batch, C_in, *size)`; `None` for zero. One of the two is given.
            log: when to stop.
            closes: begin with outputs that run on smoothly around the torus: what was not observed is unknown anyway,
                and smooth images leave the iteration less to do.

        Returns:
            Shape `(*batch, C_in, *size)`, in the dtype of the right-hand side.
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

    def solve_transposed(self, g: Tensor, log: GradientLog) -> Tensor:
        """Compute A(AᴴA + μLᴴL)⁺g, the outputs that stand behind `solve`.

        Args:
            g: shape `(*batch, C_in, *size)`.
            log: when to stop.

        Returns:
            Shape `(*batch, C_out, *output_size)`.
        """
        flat, batch = self._flatten(g), g.shape[: -1 - self._n_axes]
        unknowns = self._iterate(self._read(self._transform(flat)), batch, log, 1.0)
        outputs = self._crop(self._transform(flat), self._completion.outputs, self._output_shape)
        outputs += self._crop(self._put(unknowns), self._completion.outputs_of_unknowns, self._output_shape)
        return (outputs / self._sigma).to(g.dtype).reshape(*batch, *self._output_shape)

    def _solve_for_data(self, data: Tensor, batch: tuple[int, ...], log: GradientLog, *, closes: bool) -> Tensor:
        """Complete outputs by those that are missing, and compute the image of both."""
        unknowns = self._close(data) if closes and self._runs_on else self._zeros(len(data))
        right = self._take(self._filter.filter(self._transform(data, unknowns), self._completion.apply)).neg_()
        unknowns = self._iterate(right, batch, log, self._sigma, unknowns)
        del right
        return self._crop(self._transform(data, unknowns), self._completion.image, self._input_shape)

    def _solve_for_inputs(self, source: Callable[[], Tensor], batch: tuple[int, ...], log: GradientLog) -> Tensor:
        """Find the unknowns of a gradient, given by its spectrum, which is made twice rather than stored."""
        unknowns = self._iterate(self._read(source()), batch, log, 1.0)
        image = self._crop(self._put(unknowns), self._completion.image, self._input_shape)
        image += self._crop(source(), self._completion.image_of_inputs, self._input_shape)
        return image

    def _iterate(
        self, right: Tensor, batch: tuple[int, ...], log: GradientLog, unit: float, start: Tensor | None = None
    ) -> Tensor:
        """Solve for unknowns.

        Args:
            right: right-hand side, shape `(B, n)`; it is overwritten.
            batch: the shape that B stands for.
            log: when to stop.
            unit: the factor between what a residual leads to and the gradient in the log's unit.
            start: what the solution is added to, shape `(B, n)`, and overwrites; by default zero.
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
        """Add up the solutions on the closed slabs."""
        result = torch.zeros_like(vector)
        given, solved = map(self._unknowns.split, (vector, result))
        for axis, kinds, slab in self._slabs:
            boxes = [self._unknowns.boxes[kind] for kind in kinds]
            parts = [box.slab(given[kind], axis) for kind, box in zip(kinds, boxes, strict=True)]
            slab.solve(parts)
            for kind, box, part in zip(kinds, boxes, parts, strict=True):
                box.add_slab(part, solved[kind], axis)
        return result

    def _close_slabs(self) -> list[tuple[int, list[int], ClosedSlab]]:
        """Invert the system on the slab across each axis, for all kinds of unknowns that lie in it together.

        On planes of the torus beyond the image nothing at all is known, and outputs and differences together would be
        singular: where there are any, since the image's own length is not one that the FFT is fast at, each kind is
        inverted by itself. What room there is for matrices, all share: a single slab without matrices costs more
        iterations than all of them together save with more.
        """
        boxes, n_left = self._unknowns.boxes, most_numbers(self._torus)
        groups = []
        for axis, (n, n_image) in enumerate(zip(self._torus, (*self._lead, *self._input_shape[1:]), strict=True)):
            kinds = [kind for kind, box in enumerate(boxes) if axis in box.axes]
            groups += [(axis, kinds)] if kinds and n == n_image else [(axis, [kind]) for kind in kinds]
        groups.sort(key=lambda group: group[1])
        slabs: list[tuple[int, list[int], ClosedSlab]] = []
        for kinds, alike in itertools.groupby(groups, key=lambda group: group[1]):
            symbol = self._completion.symbol_of(kinds)
            for axis, _ in alike:
                planes = [SlabPlanes(boxes[k].n_channels, self._torus[axis] - boxes[k].box[axis]) for k in kinds]
                slab = ClosedSlab(symbol, self._torus, axis, planes, n_left // (len(groups) - len(slabs)))
                n_left -= slab.n_numbers
                slabs.append((axis, kinds, slab))
        return slabs

    def _gradient_norm(self, residual: Tensor) -> Tensor:
        return self._filter.squares(self._put(residual), self._completion.gradient).sqrt()

    def _read(self, inputs: Tensor) -> Tensor:
        """Compute the right-hand side of a gradient from its spectrum."""
        return self._take(self._filter.filter(inputs, self._completion.read, self._unknowns.n_channels))

    def _close(self, data: Tensor) -> Tensor:
        """Let outputs run on smoothly around the torus, and give what is beyond them as unknowns."""
        closed = close_smoothly(data, self._torus)
        vector = self._zeros(len(data))
        outputs = self._unknowns.boxes[0]
        outputs.take(closed, self._unknowns.split(vector)[0], slice(0, self._torus[0]))
        return vector

    def _put(self, vector: Tensor) -> Tensor:
        """Transform unknowns."""
        shape = (len(vector), self._unknowns.n_channels)
        return self._filter.transform(shape, lambda field, planes: self._unknowns.put(vector, field, planes))

    def _take(self, spectrum: Tensor) -> Tensor:
        """Read unknowns off a spectrum."""
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
