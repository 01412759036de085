"""Whether the loss is the same when it is computed again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, Operation


@dataclass(frozen=True)
class Repetition:
    """The loss computed again.

    Attributes:
        first: the loss.
        second: with the same seed once more.
        other_seed: with another seed.
        drawn: operations of the model that draw random numbers.
    """

    first: float
    second: float
    other_seed: float
    drawn: tuple[Operation, ...]

    @property
    def is_noisy(self) -> bool:
        """Whether one seed does not give one loss."""
        return not _is_same(self.first, self.second)

    @property
    def is_random(self) -> bool:
        """Whether the loss depends on the seed."""
        return not _is_same(self.first, self.other_seed)


def repeat(subject: Subject, forward: ForwardTrace) -> Repetition:
    """Compute the loss twice with one seed and once with another."""
    # What is drawn around the model, such as the weights of the loss that is used where none is named, has no line.
    drawn = tuple(draw for draw in forward.log.random if draw.location.file or draw.location.module)
    return Repetition(subject.value(), subject.value(), subject.value(subject.seed + 1), drawn)


def describe_randomness(repetition: Repetition, seed: int) -> list[str]:
    """Note that the loss depends on the seed, where it does and can be checked all the same."""
    if repetition.is_noisy or not repetition.is_random:
        return []
    where = f" ({repetition.drawn[0].label} at {repetition.drawn[0].location})" if repetition.drawn else ""
    return [f"the loss is random{where}; seed {seed} was set before every run, so it could be checked"]


def _is_same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))
