"""How a chain of layers is undone for one image.

From the last layer backwards, activations turn what is known of their values into what is known of their inputs: a
value, or a bound. If what is in front of them is affine, one convex problem is left, bounded least squares. Else the
chain is first undone run by run, each affine run by itself, where each has enough known outputs to determine its
input; and if that does not meet the data, as a whole: by a descent and Levenberg–Marquardt steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from deconv_cli.diagnostics.determined_share import DeterminedShare, determined_share
from deconv_cli.operators import synchronize
from deconv_cli.operators.bounds import Bounds, MaxPooling, PooledInputs
from deconv_cli.operators.linear_operator import Function, Linearization
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.bounded_gauss_newton import OBJECTIVE, solve_bounded_nonlinear
from deconv_cli.solvers.bounded_least_squares import MAX_DENSE_ENTRIES, solve_bounded, solve_pooled
from deconv_cli.solvers.iteration_log import IterationLog, StoppingRule
from deconv_cli.solvers.norms import relative
from deconv_cli.solvers.solution import Solution, Status
from deconv_cli.solvers.solve import largest_singular_value_of
from deconv_cli.workflows.chain_parts import Part, PartKind, compose, pools_first

ROUNDING = 8.0
"""A residual of so many times the distance of neighboring numbers in the data's type is none."""
NEAR = 1e-2
"""Relative residual below which an estimate is near enough to be refined as it is."""
SLACK = 1e-6
"""How near to an end of a range a value that was estimated is taken to be at it, relative to the largest."""


class ChainMethod(StrEnum):
    """How a chain was undone, from the least work to the most; the value is the sentence of the report."""

    LEAST_SQUARES = "one affine operator, by least squares of least norm"
    BOUNDED = "one affine operator, by bounded least squares"
    POOLED = "one affine operator in front of max pooling, by projections and bounded least squares"
    RUN_BY_RUN = "one affine run after the other, each by bounded least squares"
    WHOLE = "as a whole, by quasi-Newton and Levenberg–Marquardt steps"


@dataclass(frozen=True, eq=False)
class Undone:
    """One image, and how it was found.

    Attributes:
        solution: the estimate and how it was obtained.
        method: how it was undone.
        relative_residual: ‖f(x̂) − y‖ / ‖y‖ through the chain itself.
        determined: how much of the image the data determine around it.
        amplification: ‖J‖‖x̂‖ / ‖g(x̂)‖, g the chain without the activations that were undone, J its derivative: how far
            the parts of the estimate cancel.
        bounds_of: for each activation that was undone how many of its values were bounds alone, and how many it has.
        n_impossible: values that no input gives.
    """

    solution: Solution
    method: ChainMethod
    relative_residual: float
    determined: DeterminedShare
    amplification: float
    bounds_of: dict[Part, tuple[int, int]]
    n_impossible: int


@dataclass(frozen=True, eq=False)
class ChainInverse:
    """Undoes a chain for one image after another.

    Attributes:
        parts: the chain.
        rule: when iterations stop.
        lam: λ of the penalty λσ²max‖Lx‖².
        penalty: the name of L.
        eps: the relative distance of neighboring numbers in the type of the data.
        progress: is called after every step.
    """

    parts: list[Part]
    rule: StoppingRule
    lam: float
    penalty: str
    eps: float
    progress: Callable[[int, float], None] | None = None

    def output_of(self, x: Tensor) -> Tensor:
        """Apply the chain to one image of shape `(C, *size)`."""
        with torch.no_grad():
            return compose(self.parts)(x[None])[0]

    def undo(self, y: Tensor, start: Tensor) -> Undone:
        """Estimate the image that the chain turned into `y`.

        Args:
            y: shape `output_shape`, finite.
            start: zeros of the shape of the image.

        Raises:
            UsageError: layers that torch does not differentiate.
        """
        peeled = _Peeled.of(pools_first(self.parts), Bounds.exactly(y))
        if all(part.kind is PartKind.AFFINE for part in peeled.parts):
            is_known = synchronize.holds_everywhere(peeled.bounds.known)
            method = ChainMethod.LEAST_SQUARES if is_known else ChainMethod.BOUNDED
            function, _, bounds = self._penalized(peeled, start)
            return self._measure(y, self._solve_affine(function, bounds, start), method, peeled)
        function, quick, bounds = self._penalized(peeled, start)
        if peeled.is_pooled:
            pooled = self._through_pooling(peeled, start, function, bounds)
            if self.lam > 0:  # it has the largest pixels, but not the least penalty
                pooled = self._descend(function, quick, bounds, pooled.value, is_near=True)
            return self._measure(y, pooled, ChainMethod.POOLED, peeled)
        x, n_iterations, through = self._run_by_run(y, start)
        residual = self._relative_residual(x, y)
        if residual <= max(ROUNDING * self.eps, self.rule.tolerance) and self.lam == 0:
            certificate = _certificate(compose(self.parts), Bounds.exactly(y), x)
            solution = Solution(x, Status.CONVERGED, n_iterations, certificate, objective=OBJECTIVE)
            return self._measure(y, solution, ChainMethod.RUN_BY_RUN, through)
        is_near = residual <= NEAR
        found = self._descend(function, quick, bounds, x if is_near else start, is_near=is_near)
        return self._measure(y, found, ChainMethod.WHOLE, peeled)

    def _descend(
        self, function: Function, quick: Function, bounds: Bounds, start: Tensor, *, is_near: bool
    ) -> Solution:
        """Undo what is left as a whole."""
        return solve_bounded_nonlinear(
            function, bounds, start, self.rule, quick=quick, smooths=not is_near, progress=self.progress
        )

    def _penalized(self, peeled: _Peeled, start: Tensor) -> tuple[Function, Function, Bounds]:
        """Give the function that is left, with √λ·σmax·Lx as further outputs that are known to be zero.

        Returns:
            The function, the same in float32, and the bounds of its outputs.
        """
        function, quick, bounds = compose(peeled.parts), _in_float32(peeled.parts), peeled.bounds
        if self.lam == 0:
            return function, quick, bounds
        L = find_penalty(self.penalty).operator(tuple(start.shape), periodic=False)
        factor = self.lam**0.5 * largest_singular_value_of(Linearization(function, start), start)
        zeros = start.new_zeros(math.prod(L.output_shape))

        def penalized(function: Function, x: Tensor) -> Tensor:
            return torch.cat([function(x).flatten(1), factor * L.forward(x).flatten(1)], 1)

        lower, upper = (torch.cat([bound.flatten(), zeros]) for bound in (bounds.lower, bounds.upper))
        return partial(penalized, function), partial(penalized, quick), Bounds(lower, upper)

    def _solve_affine(self, function: Function, bounds: Bounds, start: Tensor) -> Solution:
        """Solve the convex problem that affine layers leave."""
        A = Linearization(function, start)
        return solve_bounded(A, bounds.shifted(-A.value), self.rule, progress=self.progress)

    def _through_pooling(self, peeled: _Peeled, start: Tensor, whole: Function, bounds: Bounds) -> Solution:
        """Undo affine layers and the max pooling behind them.

        Args:
            peeled: those layers, and the bounds of their output.
            start: zeros of the shape of the image.
            whole: the layers with the penalty as further outputs.
            bounds: of those outputs.
        """
        front, pooling = replace(peeled, parts=peeled.parts[:-1]), peeled.parts[-1].module
        function, quick, _ = self._penalized(front, start)
        with torch.no_grad():
            size = tuple(compose(front.parts)(start[None]).shape[2:])
        log = IterationLog(self.rule, self.progress)
        inputs = PooledInputs(cast(MaxPooling, pooling), peeled.bounds, size)
        x = solve_pooled(function, quick, inputs, start, log)
        status = Status.MAX_ITERATIONS if log.is_spent else Status.LOCAL_MINIMUM
        return Solution(x, status, log.n_iterations, _certificate(whole, bounds, x), tuple(log.history), OBJECTIVE)

    def _run_by_run(self, y: Tensor, start: Tensor) -> tuple[Tensor, int, _Peeled]:
        """Undo each run of affine layers by itself, and the activations between them.

        Returns:
            The estimate, or the start where a layer is neither affine nor an activation with an inverse, or where
            fewer outputs of a run are known than it has inputs; how many iterations it took; and the bounds that all
            activations on the way turned into.
        """
        through, n_iterations = _Peeled.of(pools_first(self.parts), Bounds.exactly(y), takes_all=True), 0
        while True:
            n_head = len(through.parts)
            while n_head and through.parts[n_head - 1].kind is PartKind.AFFINE:
                n_head -= 1
            head, run = through.parts[:n_head], through.parts[n_head:]
            if any(part.activation is None and part.kind is not PartKind.AFFINE for part in head):
                return start, n_iterations, through
            with torch.no_grad():
                shaped = compose(head)(start[None])[0] if head else start
            if synchronize.as_index(through.bounds.known.sum()) < shaped.numel():
                return start, n_iterations, through
            found = self._solve_affine(compose(run), through.bounds, torch.zeros_like(shaped))
            n_iterations += found.n_iterations
            if not head:
                return found.value, n_iterations, through
            slack = SLACK * synchronize.as_number(found.value.abs().max())
            before = _Peeled.of(head, Bounds.exactly(found.value), slack, takes_all=True)
            through = replace(before, bounds_of=through.bounds_of | before.bounds_of, n_impossible=through.n_impossible)

    def _measure(self, y: Tensor, found: Solution, method: ChainMethod, peeled: _Peeled) -> Undone:
        """Hold the estimate against the data, through the chain itself."""
        residual = self._relative_residual(found.value, y)
        if residual <= ROUNDING * self.eps and not found.status.is_success:
            found = replace(found, status=Status.CONVERGED)
        if found.status is Status.MAX_ITERATIONS and self.rule.is_overdue:
            found = replace(found, status=Status.TIME_LIMIT)
        x, whole = found.value, compose(self.parts)
        if x.numel() * y.numel() > MAX_DENSE_ENTRIES:  # else a rank takes all digits
            x, whole = x.float(), _in_float32(self.parts)
        determined = determined_share(Linearization(whole, x), x)
        left = Linearization(_in_float32(peeled.parts), found.value.float())
        size = largest_singular_value_of(left, left.value) * found.value.norm()
        amplification = synchronize.as_number(relative(size, left.value.norm()))
        return Undone(found, method, residual, determined, amplification, peeled.bounds_of, peeled.n_impossible)

    def _relative_residual(self, x: Tensor, y: Tensor) -> float:
        return synchronize.as_number(relative((self.output_of(x) - y).norm(), y.norm()))


def _certificate(function: Function, bounds: Bounds, x: Tensor) -> float:
    """Compute ‖Jᵀ(s − f(x))‖ / ‖Jᵀs‖, J the derivative of the function and s what the bounds leave of f(x)."""
    jacobian = Linearization(function, x)
    target = bounds.nearest(jacobian.value)
    gradient = jacobian.adjoint(target - jacobian.value)
    return synchronize.as_number(relative(gradient.norm(), jacobian.adjoint(target).norm()))


def _in_float32(parts: Sequence[Part]) -> nn.Sequential:
    """Give the module that runs copies of parts in float32."""
    return copy.deepcopy(compose(parts)).float()


@dataclass(frozen=True, eq=False)
class _Peeled:
    """The parts that are left when the last activations are undone, the bounds of their output, and the counts."""

    parts: Sequence[Part]
    bounds: Bounds
    bounds_of: dict[Part, tuple[int, int]]
    n_impossible: int

    @property
    def is_pooled(self) -> bool:
        """Whether affine layers and one max pooling are left."""
        *front, last = (part.kind for part in self.parts)
        return last is PartKind.MAX_POOLING and bool(front) and set(front) == {PartKind.AFFINE}

    @classmethod
    def of(cls, parts: Sequence[Part], bounds: Bounds, slack: float = 0.0, *, takes_all: bool = False) -> _Peeled:
        """Undo activations from the end of a chain, as far as that loses nothing that their values say, or all."""
        counted: dict[Part, tuple[int, int]] = {}
        n_impossible = 0
        for n in range(len(parts), 0, -1):
            part, activation = parts[n - 1], parts[n - 1].activation
            if activation is None or not (takes_all or activation.says_all(bounds)):
                return cls(parts[:n], bounds, counted, n_impossible)
            n_impossible += activation.n_impossible(bounds) if slack == 0 else 0
            bounds = activation.undo(bounds, slack)
            n_values = bounds.known.numel()
            counted[part] = (n_values - synchronize.as_index(bounds.known.sum()), n_values)
        return cls((), bounds, counted, n_impossible)
