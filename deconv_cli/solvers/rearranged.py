"""Layers as plain convolutions of rearranged pixels, undone by the solvers of those (`operators/phases.py`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.operators import synchronize
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.operators.phases import Part, plain_pads, split_layer
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import Progress, Solution, Status, StoppingRule
from deconv_cli.solvers.solver import (
    Choice,
    Cost,
    Solver,
    build_inverse,
    choose_method,
    find_solver,
    general_refusal,
    transform_operations,
)

# Setting up one plain problem takes as long as this many operations, however small it is.
OPERATIONS_PER_PROBLEM = 2e7
ITERATED = "iterative"


class PhasesSolver(Solver):
    """A plain problem for each group and each interleaved part; equal ones are solved as a batch."""

    takes_layers = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover layers whose groups alone differ from a plain one, and others if plain problems need no iteration."""
        operator = problem.operator
        if not isinstance(operator, LayerConvolution):
            return "is for layers with a stride, a dilation or groups, and for transposed ones"
        refusal = general_refusal(problem)
        if refusal is not None:
            return refusal
        parts = split_layer(operator.grid_axes, operator.boundary)
        if parts is None:
            return "does not cover this layer, since its border or size differs between the phases of its pixels"
        if operator.moves_pixels and problem.lam > 0 and find_penalty(problem.penalty).takes_differences:
            return f"rearranges pixels, so penalty {problem.penalty} would not compare neighbors"
        if operator.moves_pixels and ITERATED in _rearrange(problem)[2]:
            return "leads to plain convolutions that only an iteration solves"
        return None

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Add up the costs of the plain problems."""
        n_groups, n_operations, n_built, n_more, n_applied = _layer(problem).options.groups, 0.0, 0, 0, 0
        for parts, plain, method in zip(*_rearrange(problem), strict=True):
            cost = find_solver(method).cost(plain)
            n_applications = n_groups * len(parts)
            once = n_groups * (OPERATIONS_PER_PROBLEM + transform_operations(plain))
            n_operations += once + n_applications * cost.n_operations
            n_built += n_groups * cost.n_bytes_built
            n_more = max(n_more, cost.n_bytes_while_built - cost.n_bytes_built)
            n_applied = max(n_applied, len(parts) * cost.n_bytes_per_image)
        return Cost(n_operations, n_built, n_applied, n_built + n_more)

    def reason(self, problem: TikhonovProblem) -> str:
        """Say how many plain problems it is."""
        classes, _, methods = _rearrange(problem)
        method = " and ".join(dict.fromkeys(methods)) or "none"
        n_problems = _layer(problem).options.groups * sum(map(len, classes))
        plain = "one plain convolution" if n_problems == 1 else f"{n_problems} plain convolutions"
        others = "" if problem.lam > 0 or n_problems == 1 else ", or by another if one of them is singular"
        return f"with its pixels rearranged the layer is {plain}, undone by method {method}{others}"

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Build the inverses of the plain problems."""
        return PhasesInverse(problem, rule)


PHASES = PhasesSolver()


def _layer(problem: TikhonovProblem) -> LayerConvolution:
    assert isinstance(problem.operator, LayerConvolution)
    return problem.operator


@lru_cache(maxsize=2)
def _rearrange(problem: TikhonovProblem) -> tuple[list[list[Part]], list[TikhonovProblem], list[str]]:
    """Group the parts that are the same problem; return each group, its plain problem, and the cheapest method."""
    layer, found = _layer(problem), defaultdict[object, list[Part]](list)
    for part in split_layer(layer.grid_axes, layer.boundary) or []:
        found[part.sizes].append(part)
    classes = list(found.values())
    plain_problems = [_plain_problem(problem, parts[0], 0) for parts in classes]
    return classes, plain_problems, [_method_of(plain) for plain in plain_problems]


def _plain_problem(problem: TikhonovProblem, part: Part, group: int) -> TikhonovProblem:
    layer = _layer(problem)
    is_transposed, taps = layer.options.transposed, layer.plain_taps(layer.kernel)[group]
    pads = plain_pads(part, tuple(taps.shape[2:]), transposed=is_transposed)
    size = tuple(len(axis.coarse) if is_transposed else len(axis.fine[0]) for axis in part.axes)
    plain = Convolution(taps, size, padding=pads, boundary=layer.boundary)
    # The penalty is relative to the largest singular value of the whole layer.
    known = problem.sigma_max if problem.lam > 0 else problem.known_sigma_max
    return replace(problem, operator=plain, known_sigma_max=known)


def _method_of(plain: TikhonovProblem) -> str:
    try:
        return choose_method(plain).method
    except UsageError:  # nothing but an iteration is left
        return ITERATED


class PhasesInverse(Inverse):
    """Inverse of one layer, ready for many outputs. A plain problem that is singular is undone by another method."""

    def __init__(self, problem: TikhonovProblem, rule: StoppingRule) -> None:
        self.problem = problem
        layer = _layer(problem)
        self._transposed = layer.options.transposed
        self._classes, _, methods = _rearrange(problem)
        self._inverses = [
            [
                build_inverse(_plain_problem(problem, parts[0], group), rule, Choice(method, "the cheapest"))[0]
                for group in range(layer.options.groups)
            ]
            for parts, method in zip(self._classes, methods, strict=True)
        ]

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`."""
        solutions: list[Solution] = []

        def solve_group(inverse: Inverse, data: Tensor) -> Tensor:
            n_done = sum(found.n_iterations for found in solutions)
            counted = None if progress is None else lambda n, certificate: progress(n_done + n, certificate)
            solutions.append(inverse.solve(data, counted))
            return solutions[-1].value

        x = self._apply(solve_group, y, self._zeros(y, self.problem.operator.input_shape), from_outputs=True)
        certificate = synchronize.as_number(self.problem.certificate(x, y).max())
        return _joined(solutions, x, certificate)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, *size)`."""
        # Pixels that no output depends on are penalized all the same.
        rest = g / self.problem.weight if self.problem.weight > 0 else torch.zeros_like(g)
        return self._apply(lambda inverse, data: inverse.solve_normal(data), g, rest, from_outputs=False)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, *size)`."""
        result = self._zeros(g, self.problem.operator.output_shape)
        return self._apply(
            lambda inverse, data: inverse.solve_transposed(data), g, result, from_outputs=False, to_outputs=True
        )

    def _zeros(self, images: Tensor, shape: tuple[int, ...]) -> Tensor:
        return images.new_zeros(*images.shape[: images.ndim - len(shape)], *shape)

    def _apply(
        self,
        undo: Callable[[Inverse, Tensor], Tensor],
        images: Tensor,
        result: Tensor,
        *,
        from_outputs: bool,
        to_outputs: bool = False,
    ) -> Tensor:
        """Take images apart, map each part by the inverses of its groups, and put the values into the result."""
        group_axis, n_groups = -self.problem.n_dims - 1, _layer(self.problem).options.groups
        divided, result = (x.unflatten(group_axis + 1, (n_groups, -1)) for x in (images, result))
        for parts, inverses in zip(self._classes, self._inverses, strict=True):
            from_coarse, to_coarse = from_outputs != self._transposed, to_outputs != self._transposed
            pieces = torch.stack([part.take(divided, are_coarse=from_coarse) for part in parts])
            solved = [undo(inverse, pieces.select(group_axis, group)) for group, inverse in enumerate(inverses)]
            for part, values in zip(parts, torch.stack(solved, dim=group_axis), strict=True):
                part.put(result, values, are_coarse=to_coarse)
        return result.flatten(group_axis, group_axis + 1)


def _joined(solutions: list[Solution], x: Tensor, certificate: float) -> Solution:
    """Join the outcomes of the parts: the worst of each."""
    if not solutions:  # no output depends on anything
        return Solution(x, Status.CLOSED_FORM, 0, certificate)
    failed = [found.status for found in solutions if not found.status.is_success]
    is_closed = all(found.status is Status.CLOSED_FORM for found in solutions)
    status = failed[0] if failed else Status.CLOSED_FORM if is_closed else Status.CONVERGED
    bounds = [found.distance_bound for found in solutions]
    known = [bound for bound in bounds if bound is not None]
    history = max((found.residual_norms for found in solutions), key=len)
    n_iterations = sum(found.n_iterations for found in solutions)
    bound = max(known) if len(known) == len(bounds) else None
    return Solution(x, status, n_iterations, certificate, history, distance_bound=bound)
