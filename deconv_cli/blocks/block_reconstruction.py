"""The result of a picture that was restored block by block, and whether it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deconv_cli.blocks.block_extras import SampledError
from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_problem import advise_whole
from deconv_cli.blocks.block_task import BlockResult, BlockTask
from deconv_cli.blocks.halo_depth import SEAM_TOLERANCE
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.solver import GIVEN
from deconv_cli.vocabulary import format_padding
from deconv_cli.workflows.trust import UNTRUSTED, describe_prior

NOTE_ON_BOUNDS = (
    "saturated samples are treated as lower bounds; the error at the seams does not include them, since the estimate "
    "at a saturated sample is a guess"
)


@dataclass(frozen=True)
class BlockSummary:
    """The results of all blocks together.

    Attributes:
        n_redone: blocks that this run restored; the others were done before.
        residual: ‖y − Ax̂‖ / ‖y‖, over the data of all blocks; `residual_rms` is the root mean square of y − Ax̂.
        n_iterations: the most in any block, as `certificate` is the largest.
        n_unsolved: blocks in which the solver did not reach its tolerance.
        n_clipped: samples that the type of the result cannot hold.
        seam: the largest difference that was measured beside a seam; `None` if none was measured.
        seconds: that all blocks took together.
        predicted_error: root mean square of the expected error; `None` if it is not predicted.
        trusted_share: part of the pixels that are trusted.
    """

    n_blocks: int
    n_redone: int
    residual: float
    residual_rms: float
    n_iterations: int
    certificate: float
    n_unsolved: int
    n_clipped: int
    lowest: float
    highest: float
    seam: float | None
    n_seams: int
    seconds: float
    predicted_error: float | None = None
    trusted_share: float = 0.0

    @classmethod
    def of(cls, results: Sequence[BlockResult], n_redone: int) -> BlockSummary:
        """Pool blocks."""
        squared = math.fsum(result.squared_residual for result in results)
        data = math.fsum(result.squared_data for result in results)
        seams = [result.seam for result in results if result.seam is not None]
        n_estimated = sum(result.n_estimated for result in results)
        squares = [r.squared_predicted for r in results if r.squared_predicted is not None]
        is_predicted = len(squares) == len(results)
        trusted = math.fsum(result.trusted_share * result.n_estimated for result in results)
        return cls(
            n_blocks=len(results),
            n_redone=n_redone,
            residual=math.sqrt(squared / data) if data > 0 else 0.0,
            residual_rms=math.sqrt(squared / sum(result.n_samples for result in results)),
            n_iterations=max(result.n_iterations for result in results),
            certificate=max(result.certificate for result in results),
            n_unsolved=sum(not result.is_solved for result in results),
            n_clipped=sum(result.n_clipped for result in results),
            lowest=min(result.lowest for result in results),
            highest=max(result.highest for result in results),
            seam=max(seams, default=None),
            n_seams=len(seams),
            seconds=math.fsum(result.seconds for result in results),
            predicted_error=math.sqrt(math.fsum(squares) / n_estimated) if is_predicted else None,
            trusted_share=trusted / max(n_estimated, 1),
        )


@dataclass(frozen=True, eq=False)
class BlockReconstruction:
    """A picture that was restored block by block.

    Attributes:
        task: restored each block.
        summary: of all blocks; `None` if other processes still restore some, or put the result in its place.
    """

    task: BlockTask
    summary: BlockSummary | None

    @property
    def plan(self) -> BlockPlan:
        """The decisions before the first block."""
        return self.task.plan

    @property
    def settings(self) -> ResolvedSettings:
        """The settings with all choices made."""
        return self.task.problem.resolved

    @property
    def lam(self) -> float | tuple[float, ...] | None:
        """λ, or that of each channel; `None` if there is no quadratic penalty."""
        if not self.settings.has_lambda:
            return None
        return self.task.problem.resolution.lams or self.settings.lam

    @property
    def prior_sentence(self) -> str | None:
        """Which prior filled in what the data do not show; `None` for one that learned nothing."""
        return describe_prior(self.plan.choices.finest) if self.settings.objective == "photo" else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it was restored, a sentence each."""
        bounds = (NOTE_ON_BOUNDS,) if self.plan.choices.has_bounds else ()
        return (*self.task.problem.resolution.notes, *bounds, *self.task.plan.notes)

    @property
    def seam(self) -> float | None:
        """The largest difference that was measured beside a seam, as a part of the range of the samples."""
        measured = None if self.summary is None else self.summary.seam
        return None if measured is None or self.plan.halo.range == 0 else measured / self.plan.halo.range

    @property
    def expected_error(self) -> SampledError | None:
        """The expected error of the whole; `None` without a prediction, or while blocks are missing."""
        summary, sample = self.summary, self.plan.error
        if sample is None or summary is None or summary.predicted_error is None:
            return None
        mean_square = summary.predicted_error**2
        found = sample.of_whole(self.task.problem.image_size, mean_square, is_trusted=not self.doubts)
        return found if self.doubts else replace(found, share=summary.trusted_share)

    @property
    def record(self) -> dict[str, Any]:
        """What was done, as JSON can hold it; it goes with the result."""
        settings, resolution, lam = self.settings, self.task.problem.resolution, self.lam
        return {
            "command": "invert",
            "boundary": settings.boundary,
            "padding": format_padding(settings.padding),
            "light": str(settings.light),
            "objective": settings.objective,
            "lambda": list(lam) if isinstance(lam, tuple) else lam,
            "lambda_reason": None if lam is None else resolution.reasons.lam,
            "penalty": settings.penalty if settings.has_lambda else None,
            "weight": self.plan.choices.weight,
            "iterations": self.plan.choices.iterations,
            "is_trusted": not self.doubts,
            "doubts": list(self.doubts),
            "notes": list(self.notes),
            "plan": self.task.as_record(),
            "blocks": self.summary and dict(vars(self.summary)),
            "seam": {"predicted": self.plan.halo.predicted, "measured": self.seam},
        }

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the result cannot be trusted as it is, a sentence each."""
        found, summary, halo = list(self.plan.doubts), self.summary, self.plan.halo
        if summary is None:
            return tuple(found)
        if summary.n_unsolved:
            found.append(
                f"in {summary.n_unsolved} of {summary.n_blocks} blocks the solver did not reach its tolerance; the "
                f"largest certificate is {summary.certificate:.2g}"
            )
        # Both blocks that are compared are cut, and each may be off by the prediction. Flat tiles predict nothing.
        allowed = 2 * halo.predicted * halo.range or SEAM_TOLERANCE * (summary.highest - summary.lowest)
        if summary.seam is not None and summary.seam > allowed:
            found.append(
                f"with a halo of {halo} blocks differ by {summary.seam:.2g} beside a seam, more than the planned "
                f"{allowed:.2g}; {advise_whole(self.task.problem, self.plan.max_memory)}"
            )
        is_lambda_given = self.task.problem.resolution.reasons.lam == GIVEN
        if not found and is_lambda_given and summary.predicted_error is not None and summary.trusted_share == 0:
            found.append(UNTRUSTED)
        return tuple(found)
