"""When an iteration ends, and what it recorded on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.solvers.norms import relative

Progress = Callable[[int, float], None]
"""Called after each iteration with its number and the certificate so far."""


@dataclass(frozen=True)
class StoppingRule:
    """When an iteration ends.

    Attributes:
        tolerance: the certificate to reach.
        max_iterations: iterations at most, all rounds together.
        deadline: no iteration begins after it, in seconds of `time.monotonic`.
    """

    tolerance: float
    max_iterations: int
    deadline: float = math.inf

    @property
    def is_overdue(self) -> bool:
        """Whether the time has run out."""
        return time.monotonic() >= self.deadline


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the certificate that an iteration of this precision should reach."""
    return 1e-10 if dtype == torch.float64 else 1e-6


@dataclass
class IterationLog:
    """The iterations of one solve, all rounds together.

    Attributes:
        rule: when to stop.
        progress: called after every iteration.
        history: the certificate after every iteration, or after every step of several.
        n_inner: iterations within the steps, which have no certificate of their own.
    """

    rule: StoppingRule
    progress: Progress | None = None
    history: list[float] = field(default_factory=list)
    n_inner: int = 0

    @property
    def n_iterations(self) -> int:
        """How many iterations there were, those within steps with them."""
        return len(self.history) + self.n_inner

    @property
    def is_spent(self) -> bool:
        """Whether the iterations, or the time, have run out."""
        return self.n_iterations >= self.rule.max_iterations or self.rule.is_overdue

    def rest(self, accuracy: float, max_iterations: float = math.inf) -> StoppingRule:
        """Give the rule of an iteration within a step: it may take what is left.

        Args:
            accuracy: the certificate to reach.
            max_iterations: iterations at most, if fewer than that are left.
        """
        left = max(1, self.rule.max_iterations - self.n_iterations)
        return StoppingRule(accuracy, int(min(left, max_iterations)), self.rule.deadline)

    def record(self, certificate: float) -> None:
        """Record an iteration."""
        self.history.append(certificate)
        if self.progress is not None:
            self.progress(self.n_iterations, certificate)


class GradientLog(IterationLog):
    """The iterations of one solve of normal equations.

    Args:
        rule: when to stop.
        scale: the norm of the right-hand side, ‖Aᴴy‖ for data, shape `(*batch,)`.
        progress: called after every iteration.

    Attributes:
        goal: the norm of the gradient to be reached, shape `(*batch,)`.
    """

    def __init__(self, rule: StoppingRule, scale: Tensor, progress: Progress | None = None) -> None:
        super().__init__(rule, progress)
        self.scale = scale
        self.goal = rule.tolerance * scale

    def add(self, remaining: Tensor) -> None:
        """Record an iteration that left a gradient of norm `remaining`, shape `(*batch,)`."""
        self.record(synchronize.as_number(relative(remaining, self.scale).max()))
