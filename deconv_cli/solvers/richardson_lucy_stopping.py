"""When Richardson–Lucy ends: before it fits the noise, or where nothing moves any more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.solvers.iteration_log import IterationLog
from deconv_cli.solvers.norms import accumulation_dtype
from deconv_cli.solvers.richardson_lucy_steps import (
    MAX_EXPECTED_DEVIANCE,
    RichardsonLucySteps,
    divergence,
    expected_deviance,
    per_image,
)
from deconv_cli.solvers.solution import Status

# The held-out samples must have been without gain for this part of the steps so far, and for so many, to end it.
PATIENCE = 0.5
MIN_PATIENCE = 10


class StoppingCriterion(ABC):
    """Decides which images have come as far as the noise lets them."""

    @abstractmethod
    def ends(self, steps: RichardsonLucySteps, n_steps: int) -> Tensor:
        """Decide after so many steps, shape `(B,)`."""


@dataclass
class Discrepancy(StoppingCriterion):
    """Ends where the divergence is what Poisson noise makes of the estimate."""

    gain: float

    def ends(self, steps: RichardsonLucySteps, n_steps: int) -> Tensor:
        """Compare the deviance with its expectation."""
        del n_steps
        deviance, n_samples = 2 * steps.divergence / self.gain, steps.blurred[0].numel()
        if not synchronize.holds_anywhere(deviance <= MAX_EXPECTED_DEVIANCE * n_samples):
            return torch.zeros_like(steps.is_moving)
        mean = steps.blurred.to(accumulation_dtype(steps.blurred)) / self.gain
        return deviance <= per_image(expected_deviance(mean))


@dataclass
class NoiseLevel(StoppingCriterion):
    """Ends where the residual is as large as noise of a known size; `sigma` is its standard deviation."""

    sigma: float

    def ends(self, steps: RichardsonLucySteps, n_steps: int) -> Tensor:
        """Compare mean squares."""
        del n_steps
        squares = (steps.y - steps.blurred).to(accumulation_dtype(steps.y)).square()
        return per_image(squares) <= self.sigma**2 * per_image(torch.ones_like(squares))


class HeldOut(StoppingCriterion):
    """Ends where samples that are held out have not been predicted better for a while."""

    def __init__(self, used: Tensor) -> None:
        places = torch.unravel_index(synchronize.places(~used.flatten()), used.shape)
        self._held_out: tuple[EllipsisType | Tensor, ...] = (Ellipsis, *places)
        self._lowest: Tensor | None = None
        self.best = used.new_zeros((), dtype=torch.float32)

    def ends(self, steps: RichardsonLucySteps, n_steps: int) -> Tensor:
        """Compare with the best prediction so far."""
        found = per_image(divergence(steps.y[self._held_out], steps.blurred[self._held_out]))
        if self._lowest is None:
            self._lowest, self.best = found, torch.full_like(found, n_steps)
        self.best = torch.where(found < self._lowest, n_steps, self.best)
        self._lowest = torch.minimum(found, self._lowest)
        return n_steps >= self.best * (1 + PATIENCE) + MIN_PATIENCE


@dataclass
class FixedIterations(StoppingCriterion):
    """Ends each image after its own number of steps, shape `(B,)`."""

    wanted: Tensor

    def ends(self, steps: RichardsonLucySteps, n_steps: int) -> Tensor:
        """Count."""
        del steps
        return n_steps >= self.wanted


def run_until(
    steps: RichardsonLucySteps, criterion: StoppingCriterion, log: IterationLog, share: float = 1.0
) -> Status:
    """Take steps until every image has ended by its noise or its certificate, or the steps are spent.

    Args:
        steps: what takes them.
        criterion: decides which images have ended.
        log: the steps so far, and how many more may be taken.
        share: the part of the steps that are left which may be spent.
    """
    limit = int(share * (log.rule.max_iterations - len(log.history)))
    n_steps = 0
    ended = criterion.ends(steps, n_steps)
    certificate = steps.certificate()
    while True:
        going = ~(ended | (certificate <= log.rule.tolerance))
        if not synchronize.holds_anywhere(going):
            return Status.STOPPED_AT_NOISE if synchronize.holds_anywhere(ended) else Status.CONVERGED
        if n_steps >= limit:
            return Status.MAX_ITERATIONS
        steps.step(going)
        n_steps += 1
        certificate = steps.certificate()
        log.record(synchronize.as_number(certificate.max()))
        ended = ended | criterion.ends(steps, n_steps)
        if not synchronize.holds_anywhere(steps.is_moving):
            return Status.STAGNATED
