"""A kernel learned from pairs of images by gradient descent, for losses that no equation solves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.kernels.learning.descent import CurvePoint, Descent, Refinement
from deconv_cli.vocabulary import Size, format_percent
from deconv_cli.workflows.image_pairs import arrange_taps
from deconv_cli.workflows.learning_problem import LearningProblem
from deconv_cli.workflows.learning_settings import LearningSettings
from deconv_cli.workflows.progress_listener import ProgressListener

TOLERANCE = 1e-9
"""Distance to the minimum at which the refinement ends, relative to what the kernel makes of the images."""
TRUSTED = 1e-3
"""The same, beyond which a kernel is doubted."""
MAX_ROUNDS = 60
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class KernelLearning:
    """A kernel that was learned from pairs of images.

    Attributes:
        taps: of a cross-correlation, shape `(*k)`, `(C, *k)` or `(C_out, C_in, *k)`, float64.
        held_out_taps: the same, learned without every fifth stripe of outputs.
        curve: the loss before the first epoch and after each.
        is_overfitted: what was held out came to be predicted worse, so that the best kernel before that was taken.
        certificates: before the refinement over all outputs, and after each of its rounds: how far the minimum may be,
            relative to what the kernel makes of the images. Empty for a kernel that was not refined.
        lam: λ of each channel that was learned by itself, as in `KernelFit`.
        residual: ‖y − Xk‖ / ‖y‖ over all outputs.
        held_out: the same where outputs were held out, for the kernel that was learned without them; NaN where there
            are too few.
        n_data: outputs that were used.
    """

    taps: Tensor
    held_out_taps: Tensor
    curve: tuple[CurvePoint, ...]
    is_overfitted: bool
    certificates: tuple[float, ...]
    lam: tuple[float, ...]
    residual: float
    held_out: float
    n_data: int

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the kernel is not to be trusted, a sentence each; empty where it is."""
        if self.is_overfitted or self.certificates[-1] <= TRUSTED:
            return ()
        change = format_percent(self.certificates[-1])
        return (f"the minimum was not reached: what the kernel makes of the images may change by {change}",)


def learn_kernel(
    pairs: Sequence[tuple[Tensor, Tensor]],
    size: Size,
    *,
    settings: LearningSettings | None = None,
    progress: ProgressListener | None = None,
    resume: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda _state: None,
    **choices: Any,  # noqa: ANN401
) -> KernelLearning:
    """Learn the kernel that turns the first image of each pair into the second.

    Stochastic gradient descent over stripes of outputs, in a random order, ends when a fifth of them, which are held
    out, are predicted no better; from there all outputs together lead to the minimum.

    Args:
        pairs: each of shape `(C, *size)` or `(B, C, *size)`; the padding follows from the sizes.
        size: of the kernel: one number for each axis of space.
        settings: how to learn; or give its fields one by one.
        progress: is notified of every epoch, and of every round of refinement with its certificate.
        resume: a state that `keep` was given: learning goes on from there, to the same bits.
        keep: is given the state after every epoch and round, as tensors and plain containers.
        choices: fields of `LearningSettings`, which explains them: `loss`, `channels`, `nonnegative`, ...

    Raises:
        GradientFaultError: the gradient of the loss is wrong, or does not arrive.
        ShapeError: images that do not fit one another, or the kernel.
        UsageError: settings that cannot be, or a state of other data or settings.
        TooLargeError: the normal equations do not fit the memory.
        MalformedInputError: images that are not finite.
    """
    settings = LearningSettings.of(settings, **choices)
    run = _Run(LearningProblem.of(pairs, size, settings), settings, progress or ProgressListener(), keep)
    if resume is not None:
        run.load_state(resume)
    run.descend()
    if not run.descent.is_overfitted:
        run.refine()
    return run.result()


class _Run:
    """A descent and, after it, a refinement, each of which can be taken up again where it was left."""

    def __init__(
        self,
        problem: LearningProblem,
        settings: LearningSettings,
        progress: ProgressListener,
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        self.problem, self.settings, self.progress, self.keep = problem, settings, progress, keep
        self.mark = problem.fingerprint(settings)
        self.descent = Descent(
            problem.model,
            problem.objective,
            problem.training,
            problem.held_out,
            seed=settings.seed,
            patience=settings.patience,
        )
        self.refinement: Refinement | None = None

    def descend(self) -> None:
        """Run the epochs that are left."""
        if self.refinement is not None:
            return
        while not self.descent.is_done and len(self.descent.curve) <= self.settings.max_epochs:
            point = self.descent.run_epoch()
            self.progress.begin(f"epoch {point.step}: loss {point.training:.5g}, {point.held_out:.5g} held out")
            self._save()
        self.descent.take_best()

    def refine(self) -> None:
        """Run the rounds of refinement that are left."""
        problem = self.problem
        if self.refinement is None:
            self.refinement = Refinement(problem.model, problem.objective, problem.training + problem.held_out)
        self.progress.begin("refining", goal=TOLERANCE, limit=MAX_ROUNDS)
        while not self.refinement.is_done(TOLERANCE) and len(self.refinement.values) <= MAX_ROUNDS:
            certificate = self.refinement.run_round()
            self.progress(len(self.refinement.values) - 1, certificate)
            self._save()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            UsageError: it is one of other data or settings.
        """
        if state.get("schema") != SCHEMA or state.get("problem") != self.mark:
            raise UsageError("the state to go on from is that of other data or settings; begin without it.")
        self.descent.load_state_dict(state["descent"])
        if state["refinement"] is not None:
            problem = self.problem
            self.refinement = Refinement(problem.model, problem.objective, problem.training + problem.held_out)
            self.refinement.load_state_dict(state["refinement"])

    def result(self) -> KernelLearning:
        """Gather what was found."""
        problem, model, descent = self.problem, self.problem.model, self.descent
        least = 0.0 if self.settings.nonnegative else -math.inf  # rounding leaves zeros a little below zero
        columns, without = (
            model.columns_of(coordinates).clamp_min(least)
            for coordinates in (model.coordinates.detach(), descent.best_coordinates)
        )

        def arranged(found: Tensor) -> Tensor:
            return arrange_taps(list(found), problem.size, self.settings.channels)

        return KernelLearning(
            taps=arranged(columns),
            held_out_taps=arranged(without),
            curve=tuple(descent.curve),
            is_overfitted=descent.is_overfitted,
            certificates=() if self.refinement is None else tuple(self.refinement.certificates),
            lam=problem.lam,
            residual=problem.residual(columns, problem.training + problem.held_out),
            held_out=problem.residual(without, problem.held_out),
            n_data=problem.n_data,
        )

    def _save(self) -> None:
        refined = None if self.refinement is None else self.refinement.state_dict()
        self.keep({"schema": SCHEMA, "problem": self.mark, "descent": self.descent.state_dict(), "refinement": refined})
