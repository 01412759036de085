"""Which solver runs: the one that covers the problem at the least cost, with the reason for the report."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.errors import UsageError
from deconv_cli.parts import SOLVERS
from deconv_cli.solvers.fourier import SingularSystemError
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import Cost, Solver, free_memory, general_refusal
from deconv_cli.vocabulary import format_memory

# A solver may take this part of the memory that is free.
MEMORY_SHARE = 0.5
GIVEN = "given by the user"


@dataclass(frozen=True)
class Choice:
    """A method, and the sentence that says why it was taken."""

    method: str
    reason: str

    @property
    def is_given(self) -> bool:
        """Whether the user gave the method."""
        return self.reason == GIVEN


def find_solver(method: str) -> Solver:
    """Return the solver of a name.

    Raises:
        UsageError: no solver has this name.
    """
    if method == "richardson-lucy":
        raise UsageError(
            "method richardson-lucy is not a linear inverse: it cannot be built ahead or constrained; apply it "
            "to data with their kernel, or use method auto."
        )
    solver: Solver = SOLVERS[method]
    return solver


def refusal_of(method: str, problem: TikhonovProblem) -> str | None:
    """Return why a method does not cover a problem, as the words after "method NAME"; `None` if it does."""
    solver = find_solver(method)
    operator = problem.operator
    if operator.is_varying and not solver.takes_varying:
        return "inverts a single kernel, but this one varies over the frame"
    if operator.is_layer and not solver.takes_layers:
        return "inverts plain convolutions, but this layer has a stride, a dilation or groups, or is transposed"
    if operator.boundary.is_mixed and not solver.takes_mixed:
        return "inverts images that repeat along all axes or along none, but this one repeats along some"
    return solver.covers(problem)


def choose_method(problem: TikhonovProblem, method: str = "auto", max_memory: int | None = None) -> Choice:
    """Choose a method for a problem: the given one, or for `auto` the cheapest one that fits the memory.

    If none fits, solvers whose memory grows with the border are excluded. `max_memory` is in bytes, by default a part
    of the free memory.

    Raises:
        UsageError: the method cannot solve this problem, or none can.
    """
    if method != "auto":
        refusal = refusal_of(method, problem)
        if refusal is not None:
            raise UsageError(f"method {method} {refusal}; use method auto, or other settings.")
        return Choice(method, GIVEN)
    costs = {name: find_solver(name).cost(problem) for name in SOLVERS if refusal_of(name, problem) is None}
    if not costs:
        raise UsageError(f"method auto {general_refusal(problem) or 'finds no solver for this problem'}.")
    budget = MEMORY_SHARE * free_memory(problem.operator.kernel.device) if max_memory is None else max_memory
    fitting = _within(costs, budget)
    best, chosen = _cheapest(costs), _cheapest(fitting)
    if chosen == best:
        return Choice(chosen, find_solver(chosen).reason(problem))
    need = f"method {best} would need {format_memory(costs[best].n_bytes())}, but the limit is {format_memory(budget)}"
    return Choice(chosen, need)


def build_inverse(problem: TikhonovProblem, rule: StoppingRule, choice: Choice) -> tuple[Inverse, Choice]:
    """Build the chosen inverse; if its system is singular and the method was not given by name, take another.

    Returns:
        The inverse, and its method.

    Raises:
        UsageError: the method was given by name, and its system is singular.
    """
    method = choice.method
    try:
        return find_solver(method).build(problem, rule), choice
    except SingularSystemError as error:
        if choice.is_given:
            raise UsageError(f"method {method} fails, since {error}; use a larger λ or method auto.") from error
        instead = Choice(_most_general(problem), f"method {method}, the cheapest, fails here: {error}")
    return find_solver(instead.method).build(problem, rule), instead


def _within(costs: dict[str, Cost], budget: float) -> dict[str, Cost]:
    """Keep the methods that fit the memory; if none fits, those whose memory grows only with the image."""
    fitting = {name: cost for name, cost in costs.items() if cost.n_bytes() <= budget}
    frugal = {name: cost for name, cost in costs.items() if not find_solver(name).memory_grows_with_border}
    return fitting or frugal or costs


def _most_general(problem: TikhonovProblem) -> str:
    names = [name for name in SOLVERS if find_solver(name).takes_singular and refusal_of(name, problem) is None]
    budget = MEMORY_SHARE * free_memory(problem.operator.kernel.device)
    return _cheapest(_within({name: find_solver(name).cost(problem) for name in names}, budget))


def _cheapest(costs: dict[str, Cost]) -> str:
    return min(costs, key=lambda name: costs[name].n_operations)
