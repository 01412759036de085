"""Watch what a script does with the gradients of its backward passes: clear, step, skip."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from deconv_cli.gradients.findings import GradientReport
from deconv_cli.gradients.nested_tensors import norm_of
from deconv_cli.gradients.tracing.code_location import CodeLocation, running_line


@dataclass(frozen=True)
class OptimizerStep:
    """A step of an optimizer.

    Attributes:
        norm_after_backward, norm_at_step: of the gradients of these weights.
        n_given: how many of them had a gradient other than zero; the step changed `n_changed` of those.
        cleared_at: where gradients were cleared between backward and the step, None if they were not.
        is_fresh: its gradients were cleared since its step before, or there was none.
        n_backward: backward passes so far, the checked one among them.
    """

    optimizer: int
    name: str
    location: CodeLocation
    norm_after_backward: float
    norm_at_step: float
    n_given: int
    n_changed: int
    learning_rate: float | None
    cleared_at: CodeLocation | None
    is_fresh: bool
    n_backward: int


@dataclass(frozen=True)
class Failure:
    """An error that ends a script after a checked pass."""

    location: CodeLocation
    kind: str
    message: str

    @property
    def reads_missing_gradient(self) -> bool:
        """Whether the line reads a `.grad` that is None."""
        return "NoneType" in self.message and ".grad" in self.location.code


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


@dataclass(eq=False)
class OptimizerWatch:
    """Collects what happens from the first checked backward pass on; weights and optimizers are keyed by their ids.

    Attributes:
        held: the weights of each optimizer that has taken a step or holds a checked weight.
        reached: weights to which any backward pass gave a gradient.
        moved_by_hand: weights changed without a step of an optimizer.
        accumulated_by_hand: where a backward pass added to gradients that such a change had used already.
        cleared_at: where gradients were cleared since the last backward pass.
        last_backward: the line of the last backward pass.
        given: weights that had a gradient other than zero at a step of an optimizer that holds them.
        backward_before: for each weight of an optimizer, the line of the last backward pass before its first step.
        n_skipped: steps that a gradient scaler skipped, since the scaled gradients overflow.
        is_cut_short: the watch stopped before the first step.
        created_at: the line that built each optimizer.
    """

    steps: list[OptimizerStep] = field(default_factory=list)
    held: dict[int, frozenset[int]] = field(default_factory=dict)
    n_backward: int = 0
    reached: set[int] = field(default_factory=set)
    moved_by_hand: bool = False
    accumulated_by_hand: CodeLocation | None = None
    failure: Failure | None = None
    cleared_at: CodeLocation | None = None
    last_backward: CodeLocation = field(default_factory=CodeLocation)
    given: set[int] = field(default_factory=set)
    backward_before: dict[int, CodeLocation] = field(default_factory=dict)
    n_skipped: int = 0
    is_cut_short: bool = False
    created_at: dict[int, CodeLocation] = field(default_factory=dict)
    _weights: list[torch.Tensor] = field(default_factory=list)
    _first: list[tuple[float, float]] = field(default_factory=list)
    _norms: dict[int, float] = field(default_factory=dict)
    _scale: float = 1.0  # of the gradients after backward
    _before: dict[int, dict[int, tuple[float, float]]] = field(default_factory=dict)
    _used: dict[int, torch.optim.Optimizer] = field(default_factory=dict)
    _known: dict[int, torch.optim.Optimizer] = field(default_factory=dict)

    @property
    def first_steps(self) -> list[OptimizerStep]:
        """The first step of each optimizer."""
        return list({step.optimizer: step for step in reversed(self.steps)}.values())[::-1]

    def is_starved(self, key: int) -> bool:
        """Return whether a weight never had a gradient when an optimizer that holds it took a step."""
        return key in self.backward_before and key not in self.given

    def watch(self, weights: list[torch.Tensor]) -> None:
        """Add the weights of a checked pass."""
        known = {id(weight) for weight in self._weights}
        new = [weight for weight in weights if id(weight) not in known]
        self._weights += new
        self._first += [fingerprint(weight) for weight in new]
        own = {id(weight) for weight in self._weights}
        for optimizer in living_optimizers():
            if any(id(weight) in own for weight in weights_of(optimizer)):
                self._known[id(optimizer)] = optimizer
        self._note_held()

    @property
    def has_seen_enough(self) -> bool:
        """Whether the weights of each optimizer have seen two steps, or were changed by hand and used again.

        The steps may be those of another optimizer of the same weights, which a library wraps.
        """
        taken, held = Counter(step.optimizer for step in self.steps), self.held
        stepped = frozenset().union(*(held[key] for key, n_steps in taken.items() if n_steps > 1))
        have_stepped = bool(taken) and all(weights <= stepped for weights in held.values())
        return have_stepped or (self.moved_by_hand and self.n_backward > 2)

    def before_backward(self, location: CodeLocation) -> None:
        """Note whether gradients that a step has used are still there."""
        self.n_backward += 1
        self._used = {key: found for key, found in self._used.items() if gradient_norm(weights_of(found))}
        if not self.steps and any(fingerprint(w) != p for w, p in zip(self._weights, self._first, strict=True)):
            self.moved_by_hand = True
            if gradient_norm(self._weights) and self.accumulated_by_hand is None:
                self.accumulated_by_hand = location

    def after_backward(self) -> None:
        """Measure the gradients after backward."""
        weights = {id(w): w for w in self._weights}
        weights |= {id(w): w for optimizer in self._known.values() for w in weights_of(optimizer)}
        self._norms = {key: gradient_norm([weight]) for key, weight in weights.items()}
        self.reached |= {key for key, norm in self._norms.items() if norm}
        self.cleared_at = None

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the weights."""
        given = [weight for weight in weights_of(optimizer) if gradient_norm([weight])]
        self._before[id(optimizer)] = {id(weight): fingerprint(weight) for weight in given}
        self.given |= self._before[id(optimizer)].keys() if self._weights else set()
        for weight in weights_of(optimizer) if self._weights else ():
            self.backward_before.setdefault(id(weight), self.last_backward)

    def after_step(self, optimizer: torch.optim.Optimizer, location: CodeLocation) -> None:
        """Note a step."""
        before = self._before.pop(id(optimizer), {})
        if not self._weights:
            return
        weights = weights_of(optimizer)
        rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        self.steps.append(
            OptimizerStep(
                optimizer=id(optimizer),
                name=type(optimizer).__name__,
                location=location,
                norm_after_backward=math.hypot(*(self._norms.get(id(weight), 0.0) for weight in weights)) / self._scale,
                norm_at_step=gradient_norm(weights),
                n_given=len(before),
                n_changed=sum(id(w) in before and fingerprint(w) != before[id(w)] for w in weights),
                learning_rate=max(rates, default=None),
                cleared_at=self.cleared_at,
                is_fresh=id(optimizer) not in self._used,
                n_backward=self.n_backward,
            )
        )
        self._used[id(optimizer)] = self._known[id(optimizer)] = optimizer
        self._note_held()

    def _note_held(self) -> None:
        self.held = {key: frozenset(map(id, weights_of(found))) for key, found in self._known.items()}

    def note_creation(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the line that builds an optimizer."""
        self.created_at[id(optimizer)] = running_line()

    def note_clearing(self, _owner: torch.optim.Optimizer | torch.nn.Module) -> None:
        """Note the line that clears gradients."""
        self.cleared_at = running_line()

    def watched_scaler(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Count the steps that a gradient scaler skips, and note its factor."""

        def watched(scaler: Any, optimizer: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
            n_steps = len(self.steps)
            self._scale = float(scaler.get_scale())
            result = step(scaler, optimizer, *args, **keywords)
            self._scale = 1.0
            self.n_skipped += bool(self._weights) and len(self.steps) == n_steps
            return result

        return watched


@dataclass(frozen=True, eq=False)
class TrainingEvidence:
    """The report on the checked passes, their trainable weights by name, and the events after them."""

    report: GradientReport
    weights: Mapping[str, torch.Tensor]
    events: OptimizerWatch

    @property
    def with_gradient(self) -> dict[str, torch.Tensor]:
        """The weights to which a pass gives a gradient other than zero."""
        given = {finding.name for finding in self.report.parameters if finding.gradient_norm}
        return {name: weight for name, weight in self.weights.items() if name in given}
