"""Notes what optimizers do with the gradients of backward passes: clear, clip, step, skip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.tracing.code_location import CodeLocation, Locator
from deconv_cli.gradients.training.training_events import (
    Clipping,
    OptimizerStep,
    TrainingEvents,
    fingerprint,
    gradient_norm,
    living_optimizers,
    weights_of,
)


class OptimizerWatch:
    """Gathers `events` from the backward pass that is checked on."""

    def __init__(self) -> None:
        self.events = TrainingEvents()
        self._weights: list[torch.Tensor] = []
        self._first: list[tuple[float, float]] = []
        self._norms: dict[int, float] = {}
        self._before: dict[int, dict[int, tuple[float, float]]] = {}
        self._cleared_at: CodeLocation | None = None
        self._clipping: Clipping | None = None
        self._used: dict[int, torch.optim.Optimizer] = {}
        self._known: dict[int, torch.optim.Optimizer] = {}

    def start(self, weights: list[torch.Tensor]) -> None:
        """Begin, at the pass that is checked, with the weights that are."""
        self._weights = weights
        self._first = [fingerprint(weight) for weight in weights]
        self._count_optimizers()

    @property
    def has_seen_enough(self) -> bool:
        """Whether some optimizer has taken two steps, or weights were changed by hand and used again."""
        taken = [step.optimizer for step in self.events.steps]
        return len(taken) > len(set(taken)) or (self.events.moved_by_hand and self.events.n_backward > 2)

    def before_backward(self, location: CodeLocation) -> None:
        """Look whether gradients that were used already are still there."""
        self.events.n_backward += 1
        self._used = {key: found for key, found in self._used.items() if gradient_norm(weights_of(found))}
        if not self.events.steps and any(fingerprint(w) != p for w, p in zip(self._weights, self._first, strict=True)):
            self.events.moved_by_hand = True
            if gradient_norm(self._weights) and self.events.accumulated_by_hand is None:
                self.events.accumulated_by_hand = location

    def after_backward(self) -> None:
        """Measure the gradients that backward gave."""
        weights = {id(w): w for w in self._weights}
        weights |= {id(w): w for optimizer in self._known.values() for w in weights_of(optimizer)}
        self._norms = {key: gradient_norm([weight]) for key, weight in weights.items()}
        self.events.reached |= {key for key, norm in self._norms.items() if norm}
        self._cleared_at = self._clipping = None

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep how the weights are."""
        given = [weight for weight in weights_of(optimizer) if gradient_norm([weight])]
        self._before[id(optimizer)] = {id(weight): fingerprint(weight) for weight in given}

    def after_step(self, optimizer: torch.optim.Optimizer, location: CodeLocation) -> None:
        """Note a step."""
        before = self._before.pop(id(optimizer), {})
        if not self._weights:
            return
        weights = weights_of(optimizer)
        rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        self.events.steps.append(
            OptimizerStep(
                optimizer=id(optimizer),
                name=type(optimizer).__name__,
                location=location,
                held=frozenset(id(weight) for weight in weights),
                norm_after_backward=math.sqrt(math.fsum(self._norms.get(id(weight), 0.0) ** 2 for weight in weights)),
                norm_at_step=gradient_norm(weights),
                n_given=len(before),
                n_changed=sum(fingerprint(w) != before[id(w)] for w in weights if id(w) in before),
                learning_rate=max(rates, default=None),
                cleared_at=self._cleared_at,
                clipping=self._clipping,
                is_fresh=id(optimizer) not in self._used,
            )
        )
        self._used[id(optimizer)] = self._known[id(optimizer)] = optimizer
        self._count_optimizers()

    def _count_optimizers(self) -> None:
        """Count the optimizers that have taken a step, and those that hold any of the weights."""
        own = {id(weight) for weight in self._weights}
        for optimizer in living_optimizers():
            if any(id(weight) in own for weight in weights_of(optimizer)):
                self._known[id(optimizer)] = optimizer
        self.events.held = [frozenset(id(w) for w in weights_of(optimizer)) for optimizer in self._known.values()]

    def watched_clearing(self, clear: Callable[..., None]) -> Callable[..., None]:
        """Note where gradients are cleared."""

        def watched(*args: Any, **keywords: Any) -> None:  # noqa: ANN401  torch's own signature
            self._cleared_at = _here()
            clear(*args, **keywords)

        return watched

    def watched_clipping(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        """Note where gradients are clipped, and by how much."""

        def watched(parameters: Any, limit: float, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
            weights = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            self._clipping = Clipping(_here(), float(limit), gradient_norm(weights))
            return clip(weights, limit, *args, **keywords)

        return watched

    def watched_scaler(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Note that a gradient scaler leaves a step out."""

        def watched(scaler: Any, optimizer: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
            n_steps = len(self.events.steps)
            result = step(scaler, optimizer, *args, **keywords)
            self.events.n_skipped += bool(self._weights) and len(self.events.steps) == n_steps
            return result

        return watched


def _here() -> CodeLocation:
    return Locator(nn.Module()).here()
