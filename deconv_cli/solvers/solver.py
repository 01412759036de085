"""The base of all solvers of quadratic problems, and which one runs: the one that covers a problem at the least cost.

To add a solver, write one subclass and `deconv_cli.SOLVERS.register("name", MySolver())`: it can then be given as
`method`, and competes under method `auto`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from deconv_cli.errors import UsageError
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.convolution import prefers_fft, unfolds_by_parts
from deconv_cli.operators.synchronize import free_memory
from deconv_cli.parts import SOLVERS
from deconv_cli.solvers.fourier import SingularSystemError
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.vocabulary import format_memory

# The memory estimates count arrays of the size of the symbol and of the images. The counts were fitted to peaks
# measured in processes of their own, and a test keeps them within a factor of two.
# Images with the channels of input and output that an application of an iteration keeps at once.
N_IMAGES_ITERATED = 8
# The cost of a solver's step beyond its arithmetic, in operations: tens of calls of torch, measured on small images.
CALL_OPERATIONS = 5e5
# GMRES stores at most this many vectors, and at most this many numbers in them, unless that were too few vectors; and
# as many again that its preconditioner has made of them.
MAX_VECTORS, MIN_VECTORS, MAX_NUMBERS = 300, 20, 2**25


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a solver for one problem.

    Attributes:
        n_operations: floating-point operations of building the inverse and applying it to one image, beyond the
            division in frequency that every solver begins with; those that run faster than FFTs count less.
        n_bytes_built: memory of the inverse once it is built.
        n_bytes_per_image: memory for each image that it is applied to at once.
        n_bytes_while_built: peak of memory while the inverse is built, if that may be the larger one.
    """

    n_operations: float
    n_bytes_built: int
    n_bytes_per_image: int
    n_bytes_while_built: int = 0

    @classmethod
    def of_transforms(
        cls,
        problem: TikhonovProblem,
        n_operations: float,
        *,
        n_bytes_factored: int,
        n_bytes_while_built: int = 0,
        n_images: float = N_IMAGES_ITERATED,
        n_more_numbers: int = 0,
    ) -> Cost:
        """Estimate the cost of a solver that works by FFTs.

        An application keeps `n_images` with the channels of input and output at once, and `n_more_numbers` for each
        image.
        """
        taps, n_pixels, channels = problem.operator.kernel, _n_pixels(problem), (problem.n_outputs, problem.n_inputs)
        n_numbers = int(n_images * n_pixels * sum(channels)) + n_more_numbers
        n_bytes_built, n_bytes_per_image = n_bytes_factored, arithmetic_itemsize(problem) * n_numbers
        if prefers_fft(taps):
            n_bytes_built += 2 * taps.itemsize * n_pixels * math.prod(channels)  # the operator's own symbol
        elif not unfolds_by_parts(taps):
            # torch's direct convolution unfolds the image into as many copies as there are taps.
            n_bytes_per_image += taps.itemsize * n_pixels * math.prod(taps.shape[2:]) * min(taps.shape[:2])
        return cls(n_operations, n_bytes_built, n_bytes_per_image, n_bytes_while_built)

    def n_bytes(self, n_images: int = 1) -> int:
        """Estimate the peak of memory for a batch, from the building on."""
        return max(self.n_bytes_while_built, self.n_bytes_built + n_images * self.n_bytes_per_image)


def count_vectors(n_numbers: int) -> int:
    """Return how many vectors of this many numbers GMRES stores at most."""
    return max(MIN_VECTORS, min(MAX_VECTORS, MAX_NUMBERS // n_numbers))


class Solver(ABC):
    """One way to solve quadratic problems.

    Attributes:
        why: clause that says why it is taken.
        memory_grows_with_border: whether it factors dense matrices, so that another solver has to take over if memory
            is short.
        takes_singular: whether no problem that it covers can turn out to be singular for it.
        takes_varying: whether it inverts kernels that vary over the frame.
        takes_layers: whether it inverts layers with a stride, a dilation or groups, and transposed ones.
        takes_mixed: whether it inverts single kernels on images that go around a torus along some axes and end along
            others.
    """

    why = ""
    memory_grows_with_border = False
    takes_singular = False
    takes_varying = False
    takes_layers = False
    takes_mixed = False

    @abstractmethod
    def covers(self, problem: TikhonovProblem) -> str | None:
        """Return `None` if it can solve the problem, else why not, as the words after "method NAME"."""

    @abstractmethod
    def cost(self, problem: TikhonovProblem) -> Cost:
        """Estimate the cost of a problem that it covers."""

    def reason(self, problem: TikhonovProblem) -> str:
        """Return the clause that says why it is taken; by default `why`."""
        return self.why

    @abstractmethod
    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Build the inverse of a problem that it covers.

        A `SingularSystemError` lets another solver take over; a kernel that leaves the problem undetermined is a
        `UsageError`.
        """


def general_refusal(problem: TikhonovProblem) -> str | None:
    """Return why no solver but a closed form covers a problem; `None` if others may."""
    if not problem.is_determined:
        return (
            f"has no unique answer here, since penalty {problem.penalty} leaves constant images undetermined if a "
            f"kernel has fewer outputs ({problem.n_outputs}) than inputs ({problem.n_inputs}), unlike penalty identity"
        )
    return None


def symbol_bytes(problem: TikhonovProblem, n_symbols: float) -> int:
    """Compute the memory of symbols in double precision."""
    # Half as many complex numbers of sixteen bytes as pixels.
    return int(n_symbols * 8 * _n_pixels(problem)) * problem.n_outputs * problem.n_inputs


def arithmetic_itemsize(problem: TikhonovProblem) -> int:
    """Return the bytes of a real number in the arithmetic of a solver."""
    taps = problem.operator.kernel
    return taps.itemsize if problem.runs_in_own_precision else to_float64(taps[:0]).itemsize


def transform_operations(problem: TikhonovProblem) -> float:
    """Estimate the operations of one FFT of an input and an output, and of a product with a symbol."""
    n, channels = _n_pixels(problem), problem.n_outputs + problem.n_inputs
    return channels * 2.5 * n * math.log2(max(n, 2)) + 8.0 * n * channels**2 + CALL_OPERATIONS


def _n_pixels(problem: TikhonovProblem) -> int:
    return math.prod(problem.operator.geometry.extended_size)


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
    """Return the solver of a name; `richardson-lucy` or an unknown name is a `UsageError`."""
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
    of the free memory. A method that cannot solve the problem is a `UsageError`.
    """
    if method != "auto":
        refusal = refusal_of(method, problem)
        if refusal is not None:
            raise UsageError(f"method {method} {refusal}; use method auto, or other settings.")
        return Choice(method, GIVEN)
    budget = MEMORY_SHARE * free_memory(problem.operator.kernel.device) if max_memory is None else max_memory
    costs = dict[str, Cost]()
    for name in SOLVERS:
        if refusal_of(name, problem) is None:
            costs[name] = cost = find_solver(name).cost(problem)
            if cost.n_operations == 0 and cost.n_bytes() <= budget:
                break  # no other is cheaper, and to estimate their costs may take as long as to solve
    if not costs:
        raise UsageError(f"method auto {general_refusal(problem) or 'finds no solver for this problem'}.")
    fitting = _within(costs, budget)
    best, chosen = _cheapest(costs), _cheapest(fitting)
    if chosen == best:
        return Choice(chosen, find_solver(chosen).reason(problem))
    need = f"method {best} would need {format_memory(costs[best].n_bytes())}, but the limit is {format_memory(budget)}"
    return Choice(chosen, need)


def build_inverse(problem: TikhonovProblem, rule: StoppingRule, choice: Choice) -> tuple[Inverse, Choice]:
    """Build the chosen inverse; if its system is singular and the method was not given by name, take another.

    Gives the inverse and its method. A singular system of a method that was given by name is a `UsageError`.
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
