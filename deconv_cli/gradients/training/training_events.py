"""What optimizers do after a backward pass: which weights they hold, and what becomes of the gradients."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch

from deconv_cli.gradients.findings import GradientReport
from deconv_cli.gradients.nested_tensors import norm_of
from deconv_cli.gradients.tracing.code_location import CodeLocation

_BETWEEN = "call it between loss.backward() and optimizer.step()"


class IdleReason(Enum):
    """Why gradient clipping has no effect on the next optimizer step, and what to write."""

    NO_WEIGHTS = (
        "it gets an iterator that was used up before, as by the optimizer, so it limits no gradient.",
        "call parameters() again: clip_grad_norm_(model.parameters(), ...)",
    )
    NO_GRADIENTS = (
        "no weight that it gets has a gradient then, so the step uses gradients without a limit.",
        f"{_BETWEEN}, for the weights that the optimizer holds",
    )
    TOO_EARLY = (
        "a later backward pass adds to the gradients that it limits, so the step uses more than the limit.",
        "call it after the last loss.backward() before optimizer.step()",
    )
    USED = ("the step has used these gradients already, without a limit.", _BETWEEN)
    SCALED = (
        "the gradients are still multiplied by the scale of the GradScaler, and the step divides them afterwards: "
        "the clipped gradients end up smaller than the limit by the scale factor.",
        "call scaler.unscale_(optimizer) right before it",
    )


@dataclass(eq=False)
class Clipping:
    """A call that limits the gradients of some weights, to a norm or element by element.

    Attributes:
        norm_before, norm_after: of the gradients of all these weights, before and after the call.
        n_calls: how often the line called it since a step used any of these gradients.
        is_early: a backward pass has changed the gradients afterwards.
    """

    location: CodeLocation
    limit: float
    weights: list[torch.Tensor]
    norm_before: float
    norm_after: float = 0.0
    n_calls: int = 1
    is_early: bool = False

    @property
    def ids(self) -> set[int]:
        """The weights by their ids."""
        return {id(weight) for weight in self.weights}


@dataclass(frozen=True)
class OptimizerStep:
    """A step of an optimizer.

    Attributes:
        held: ids of the weights that it holds.
        norm_after_backward, norm_at_step: of the gradients of these weights.
        n_given: how many of them had a gradient other than zero; the step changed `n_changed` of those.
        cleared_at: where gradients were cleared between backward and the step, None if they were not.
        is_fresh: its gradients were cleared since its step before, or there was none.
        is_mixed: a later backward pass added to gradients that another optimizer's step had passed over.
        begins_state: it had no state from earlier steps, such as momentum, and has one after this step.
        n_backward: backward passes so far, the checked one among them; `backward` is the line of the last one.
    """

    optimizer: int
    name: str
    location: CodeLocation
    held: frozenset[int]
    norm_after_backward: float
    norm_at_step: float
    n_given: int
    n_changed: int
    learning_rate: float | None
    cleared_at: CodeLocation | None
    clipping: Clipping | None
    is_fresh: bool
    is_mixed: bool
    begins_state: bool
    n_backward: int
    backward: CodeLocation


@dataclass(frozen=True)
class Failure:
    """An error that ends a script after a checked pass, and where gradients were cleared since the last backward."""

    location: CodeLocation
    kind: str
    message: str
    cleared_at: CodeLocation | None = None

    @property
    def reads_missing_gradient(self) -> bool:
        """Whether the line reads a `.grad` that is None."""
        return "NoneType" in self.message and ".grad" in self.location.code


@dataclass
class TrainingEvents:
    """What happens from the first checked backward pass on; weights and optimizers are keyed by their ids.

    Attributes:
        held: the weights that each optimizer holds.
        n_backward: backward passes, the checked one among them.
        n_skipped: steps that a gradient scaler skipped.
        reached: weights to which any backward pass gave a gradient.
        moved_by_hand: weights changed without a step of an optimizer.
        accumulated_by_hand: where a backward pass added to gradients that such a change had used already.
        carried: the line of a backward pass whose graph reaches back past a step.
        overwritten: where modules set weights back to the values before a step.
        drifting: where modules change weights further in each pass.
        reached_by_others: weights that a pass does not use, but would with other data.
        adds_squares: where the script adds up squared gradients, as for a Fisher matrix.
        given: weights that had a gradient other than zero at a step of an optimizer that holds them.
        backward_before: for each weight of an optimizer, the line of the last backward pass before its first step.
        strays: unregistered weights of modules, each with its fingerprint at a checked pass.
        late: names of weights that came after the first pass and that no optimizer holds.
        differentiates_inputs: a loss is differentiated by inputs too, as for a picture of what matters.
        idle_clippings: gradient clipping that has no effect on the next step, by line.
        wasted: for lines of backward passes, where their gradients were cleared each time before any step.
        is_cut_short: the watch stopped before the first step.
    """

    steps: list[OptimizerStep] = field(default_factory=list)
    held: dict[int, frozenset[int]] = field(default_factory=dict)
    n_backward: int = 0
    n_skipped: int = 0
    reached: set[int] = field(default_factory=set)
    moved_by_hand: bool = False
    accumulated_by_hand: CodeLocation | None = None
    carried: CodeLocation | None = None
    failure: Failure | None = None
    overwritten: dict[int, CodeLocation] = field(default_factory=dict)
    drifting: dict[int, CodeLocation] = field(default_factory=dict)
    reached_by_others: set[int] = field(default_factory=set)
    adds_squares: CodeLocation | None = None
    given: set[int] = field(default_factory=set)
    backward_before: dict[int, CodeLocation] = field(default_factory=dict)
    strays: list[tuple[torch.Tensor, tuple[float, float]]] = field(default_factory=list)
    late: dict[int, str] = field(default_factory=dict)
    differentiates_inputs: bool = False
    idle_clippings: dict[str, tuple[CodeLocation, IdleReason]] = field(default_factory=dict)
    wasted: dict[CodeLocation, list[CodeLocation]] = field(default_factory=dict)
    is_cut_short: bool = False

    @property
    def has_moved_strays(self) -> bool:
        """Whether the code itself trains weights that its optimizers do not get."""
        return any(fingerprint(weight) != before for weight, before in self.strays)

    def is_starved(self, key: int) -> bool:
        """Return whether a weight never had a gradient when an optimizer that holds it took a step."""
        return key in self.backward_before and key not in self.given


def weights_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """List the weights that an optimizer holds."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def living_optimizers() -> Iterator[torch.optim.Optimizer]:
    """List the optimizers that the program holds."""
    # By class: isinstance makes some objects of torch warn.
    return (found for found in gc.get_objects() if issubclass(type(found), torch.optim.Optimizer))


def gradient_norm(weights: Iterable[torch.Tensor]) -> float:
    """Measure the norm of all gradients together; zero where there are none."""
    return math.sqrt(math.fsum(norm_of(weight.grad) ** 2 for weight in weights if weight.grad is not None))


def fingerprint(weight: torch.Tensor) -> tuple[float, float]:
    """Measure a weight so that any change of it shows."""
    values = weight.detach().double() if not weight.is_complex() else torch.view_as_real(weight.detach()).double()
    signs = torch.arange(1, values.numel() + 1, dtype=torch.float64, device=values.device).sin()
    return float(values.sum()), float((values.reshape(-1) * signs).sum())


@dataclass(frozen=True, eq=False)
class TrainingEvidence:
    """The report on the checked passes, their trainable weights by name, and the events after them."""

    report: GradientReport
    weights: Mapping[str, torch.Tensor]
    events: TrainingEvents

    @property
    def with_gradient(self) -> dict[str, torch.Tensor]:
        """The weights to which a pass gives a gradient other than zero."""
        given = {finding.name for finding in self.report.parameters if finding.gradient_norm}
        return {name: weight for name, weight in self.weights.items() if name in given}

    @property
    def first_steps(self) -> list[OptimizerStep]:
        """The first step of each optimizer."""
        first: dict[int, OptimizerStep] = {}
        for step in self.events.steps:
            first.setdefault(step.optimizer, step)
        return list(first.values())
