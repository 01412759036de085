"""What came of a picture that was restored block by block, and whether it is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_task import BlockTask
from deconv_cli.blocks.run_blocks import BlockSummary
from deconv_cli.blocks.sampled_error import SampledError
from deconv_cli.settings import ResolvedSettings
from deconv_cli.vocabulary import format_padding

NOTE_ON_BOUNDS = (
    "full samples were taken for no more than 'at least this bright'; the error at the seams is that of all others, "
    "since what lies there is a guess"
)


@dataclass(frozen=True, eq=False)
class BlockReconstruction:
    """What came of a picture that was restored block by block.

    Attributes:
        task: what was done to each block, by which plan.
        summary: what came of all blocks; `None` where some, or putting them in place, are left to other processes.
    """

    task: BlockTask
    summary: BlockSummary | None

    @property
    def plan(self) -> BlockPlan:
        """What was decided before the first block."""
        return self.task.plan

    @property
    def settings(self) -> ResolvedSettings:
        """What was solved, with nothing left open."""
        return self.task.problem.resolution.settings

    @property
    def lam(self) -> float | tuple[float, ...] | None:
        """λ, or that of each channel; `None` where there is no quadratic penalty."""
        if not self.settings.has_lambda:
            return None
        return self.task.problem.resolution.lams or self.settings.lam

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it was restored, a sentence each."""
        notes = self.task.problem.resolution.notes
        return (*notes, NOTE_ON_BOUNDS) if self.plan.choices.has_bounds else notes

    @property
    def seam(self) -> float | None:
        """The largest difference that was measured beside a seam, as a part of the range of the samples."""
        measured = None if self.summary is None else self.summary.seam
        return None if measured is None or self.plan.halo.range == 0 else measured / self.plan.halo.range

    @property
    def expected_error(self) -> SampledError | None:
        """The error to be expected of the whole; `None` where it was not asked for, or blocks are left."""
        summary, sample = self.summary, self.plan.error
        if sample is None or summary is None or summary.predicted_error is None:
            return None
        mean_square, real = summary.predicted_error**2, summary.real_error
        found = sample.of_whole(self.task.problem.image_size, mean_square, real, is_trusted=not self.doubts)
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
            "rho": self.plan.choices.rho,
            "is_trusted": not self.doubts,
            "doubts": list(self.doubts),
            "notes": list(self.notes),
            "plan": self.task.as_record(),
            "blocks": self.summary and self.summary.as_record(),
            "seam": {"predicted": self.plan.halo.predicted, "measured": self.seam},
        }

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the result is not to be trusted as it is, a sentence each."""
        found = list(self.plan.doubts)
        if self.summary is not None and self.summary.n_unsolved:
            found.append(
                f"in {self.summary.n_unsolved} of {self.summary.n_blocks} blocks the solver did not reach what was "
                f"asked for; the largest certificate is {self.summary.certificate:.2g}"
            )
        return tuple(found)
