"""What optimizers do after a backward pass: which weights they hold, and what becomes of the gradients."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from deconv_cli.gradients.findings import GradientReport
from deconv_cli.gradients.tensors import norm_of
from deconv_cli.gradients.tracing.code_location import CodeLocation


class IdleReason(StrEnum):
    """Why a call limits nothing that a step goes by."""

    NO_WEIGHTS = "no weights"
    NO_GRADIENTS = "no gradients yet"
    TOO_EARLY = "gradients that are added to"
    USED = "gradients that were used"
    SCALED = "gradients that are scaled"


@dataclass(frozen=True)
class Clipping:
    """A call that limits gradients to a norm, or each of their elements."""

    location: CodeLocation
    limit: float
    norm_before: float


@dataclass(frozen=True)
class IdleClipping:
    """A call that limits no gradient that a step goes by, or one that is `SCALED` to less than its limit says."""

    location: CodeLocation
    reason: IdleReason


@dataclass(frozen=True)
class OptimizerStep:
    """A step that an optimizer took.

    Attributes:
        held: ids of the weights that it holds.
        norm_after_backward, norm_at_step: of the gradients of these weights.
        n_given: how many of them had a gradient other than zero, `n_changed` how many of those the step changed.
        cleared_at: where gradients were cleared between backward and the step, None if they were not.
        is_fresh: its gradients were cleared since its step before, or there was none.
        begins_state: it had nothing to go on with from steps before, such as momentum, and has after this one.
        is_mixed: a later backward pass added to gradients that were there when another optimizer took its step.
        n_backward: how many backward passes there had been, the checked one among them.
        backward: the line of the last of them.
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
    """An error that ends a script after a pass of it was checked.

    Attributes:
        cleared_at: where gradients were cleared after the last backward pass, None where they were not.
    """

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
    """What happened from the first backward pass that was checked on.

    Attributes:
        held: ids of the weights that each optimizer holds, by the id of the optimizer.
        n_backward: backward passes, the checked one among them.
        n_skipped: steps that a gradient scaler left out.
        reached: ids of the weights to which any backward pass gave a gradient.
        moved_by_hand: weights changed without a step of an optimizer that was seen.
        accumulated_by_hand: where a backward pass added to gradients that such a change had used already.
        carried: the line of a backward pass whose graph reaches back past a step, None where there is none.
        failure: what ended the script, None where it went on.
        overwritten: where modules set weights back to what they were before a step changed them, by their ids.
        drifting: where modules change weights further in each pass, by their ids.
        reached_by_others: ids of weights that a pass does not use, and would with other data.
        adds_squares: where squared gradients are added up, as for a Fisher matrix.
        given: ids of the weights that had a gradient other than zero at a step of an optimizer that holds them.
        backward_before: the line of the last backward pass before the first step of such an optimizer, by their ids.
        strays: weights that modules keep past registration, each with its fingerprint at a pass that was checked.
        late: names, by their ids, of weights that came after the first pass and that no optimizer holds.
        differentiates_inputs: a loss is differentiated by more than weights, as for a picture of what matters.
        idle_clippings: calls that limit no gradient that a step goes by, by their lines.
        wasted: for lines of backward passes, where their gradients were cleared each time before any step.
        is_cut_short: the first step was not waited for any longer.
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
    idle_clippings: dict[str, IdleClipping] = field(default_factory=dict)
    wasted: dict[CodeLocation, list[CodeLocation]] = field(default_factory=dict)
    is_cut_short: bool = False

    @property
    def has_moved_strays(self) -> bool:
        """Whether the code trains by hand what its optimizers are not given."""
        return any(fingerprint(weight) != before for weight, before in self.strays)

    def is_starved(self, key: int) -> bool:
        """Tell whether a weight never had a gradient when an optimizer that holds it took a step."""
        return key in self.backward_before and key not in self.given


def weights_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """List the weights that an optimizer holds."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def living_optimizers() -> Iterator[torch.optim.Optimizer]:
    """List the optimizers that the program holds."""
    # By class: asking some objects of torch what they are makes them warn.
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
    """All that was seen.

    Attributes:
        report: what was found for the passes themselves.
        weights: the trainable ones of the passes, by name.
        events: what happened afterwards.
    """

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
