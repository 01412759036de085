"""What a page shows if a run has it: how λ was chosen, and what error is to be expected."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from torch import Tensor


class LambdaCurve(Protocol):
    """What one rule makes of every λ."""

    @property
    def rule(self) -> StrEnum:
        """Which rule."""

    @property
    def lams(self) -> tuple[float, ...]:
        """The values of λ that were tried."""

    @property
    def values(self) -> tuple[float, ...]:
        """What the rule makes small, at each of them."""

    @property
    def chosen(self) -> float:
        """The λ of its least value."""


class LambdaChoice(Protocol):
    """How λ was chosen."""

    @property
    def lam(self) -> float:
        """The λ that was taken."""

    @property
    def rule(self) -> StrEnum:
        """The rule that decided."""

    @property
    def reason(self) -> str:
        """Why, as a sentence."""

    @property
    def warning(self) -> str | None:
        """Why the choice may be wrong, as a sentence."""

    @property
    def curve(self) -> LambdaCurve | None:
        """What the rule looked at."""

    @property
    def witness(self) -> LambdaCurve | None:
        """What a second rule says."""


class ErrorBand(Protocol):
    """The error at one distance from the edge."""

    @property
    def distance(self) -> float:
        """Pixels to the nearest edge."""

    @property
    def predicted(self) -> float:
        """Root mean square to be expected, in the units of the samples."""

    @property
    def actual(self) -> float | None:
        """Root mean square found, where the truth is known."""


class PredictedError(Protocol):
    """The error to be expected."""

    @property
    def map(self) -> Tensor:
        """Root mean square at each pixel, of the shape of the estimate, in the units of the samples."""

    @property
    def trusted(self) -> Tensor:
        """Where the estimate is to be trusted, bool, shape `(H, W)`."""

    @property
    def bands(self) -> Sequence[ErrorBand]:
        """By distance from the edge."""
