"""The work on one block, the result of all blocks together, and whether it can be trusted.

A block is read with its halo, restored, cropped, and written in whole units of the result.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deconv_cli.blocks.block_extras import NO_EXTRAS, BlockExtras, SampledError, region_of, write_block, write_extras
from deconv_cli.blocks.block_grid import Block, BlockGrid
from deconv_cli.blocks.block_plan import BlockPlan, corner_of
from deconv_cli.blocks.block_problem import BlockProblem, advise_whole, limit_threads
from deconv_cli.blocks.halo_depth import SEAM_TOLERANCE
from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.io.layout import Layout, convert_samples
from deconv_cli.io.records import samples_digest
from deconv_cli.io.region_arrays import RegionTarget
from deconv_cli.operators.axes import space_axes
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.solution import default_tolerance
from deconv_cli.solvers.solver import GIVEN
from deconv_cli.vocabulary import format_padding, format_percent
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.trust import UNTRUSTED, Doubt, DoubtReason, describe_prior


@dataclass(frozen=True)
class BlockResult:
    """The result of a block that is written; the checkpoint holds it.

    Attributes:
        n_samples: data samples at its own pixels, without the halo; `squared_data` is ‖y‖² and `squared_residual`
            ‖y − Ax̂‖² over them.
        is_solved: whether the solver reached its tolerance.
        n_clipped: samples that the type of the result cannot hold.
        n_estimated: samples of the estimate.
        squared_predicted: sum of the expected squared error; `None` without a prediction.
        trusted_share: part of the pixels that is trusted.
        extra_digests: of the samples that it wrote into the other files.
        result_digest: of the samples that it wrote into the result.
        data_digest: of the samples that it read.
        seam: the largest difference from a block that lies across its seams; `None` if it is not measured.
        seconds: that it took.
    """

    number: int
    n_samples: int
    squared_residual: float
    squared_data: float
    n_iterations: int
    certificate: float
    is_solved: bool
    n_clipped: int
    lowest: float
    highest: float
    n_estimated: int
    squared_predicted: float | None
    trusted_share: float
    extra_digests: tuple[str, ...]
    result_digest: str
    data_digest: str
    seam: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class BlockTask:
    """Restores and writes any block of a picture: `task(number)`; can be sent to other processes, and be repeated.

    The problem has all choices made; the file of the result is unfinished.
    """

    problem: BlockProblem
    plan: BlockPlan
    target: RegionTarget
    extras: BlockExtras = NO_EXTRAS

    @cached_property
    def layout(self) -> Layout:
        """Axes and sizes of the result."""
        return Layout(self.target.axes, self.target.shape, self.problem.layout.dimensions)

    @cached_property
    def grid(self) -> BlockGrid:
        """All blocks."""
        return BlockGrid(self.layout, self.problem.cuts, self.plan.core, self.plan.halo.halo, self.plan.halo.at_frame)

    @property
    def targets(self) -> tuple[RegionTarget, ...]:
        """All files that are written, the result last."""
        return (*self.extras.targets, self.target)

    def check_data(self, done: BlockResult) -> None:
        """Refuse, by `UsageError`, an input whose samples have changed since a block was restored.

        A file can be replaced by one of the same size and time, so only its samples show a change.
        """
        block = self.grid.block(done.number)
        if _digest_of(self.problem.read(block.batch, block.data)) != done.data_digest:
            raise UsageError(
                f"'{self.problem.source.path}' has changed since the run for '{self.target.path}' "
                "began; restore the earlier file, or give force=True to start over."
            )

    def holds(self, done: BlockResult) -> bool:
        """Return whether all files still hold what a block wrote."""
        block = self.grid.block(done.number)
        with contextlib.suppress(DeconvError):
            found = [samples_digest(target.read(region_of(target, block))) for target in self.targets]
            return found == [*done.extra_digests, done.result_digest]
        return False

    def as_record(self) -> dict[str, Any]:
        """Describe how the picture is cut, as JSON can hold it."""
        halo, space = self.plan.halo, self.layout.space
        return {
            "fingerprint": self.plan.fingerprint,
            "blocks": self.grid.n_blocks,
            "core": dict(zip(self.layout.axes, self.plan.core, strict=True)),
            "halo": dict(zip(space, halo.halo, strict=True)),
            "halo_at_frame": dict(zip(space, halo.at_frame, strict=True)),
            "predicted_seam": halo.predicted,
            "range": halo.range,
            "block_bytes": self.plan.block_bytes,
            "threads": self.plan.n_threads,
        }

    def __call__(self, number: int) -> BlockResult:
        """Restore and write one block.

        Raises:
            MalformedInputError: the file is damaged there, or holds NaN or Inf.
            FileAccessError: the result cannot be written.
            UntrustworthyResultError: the estimate holds NaN or Inf.
        """
        started = time.perf_counter()
        limit_threads(self.plan.n_threads)
        block, pipeline = self.grid.block(number), _pipeline_of(self)
        done, core = self._restore(block, pipeline)
        seam = self._measure_seam(block, core, pipeline)  # once the memory of the block itself is free again
        return replace(done, seam=seam, seconds=time.perf_counter() - started)

    def _restore(self, block: Block, pipeline: Pipeline) -> tuple[BlockResult, Tensor]:
        """Restore and write a block; return its result, and its estimate, shape `(B, C, *core)`."""
        values = self.problem.read(block.batch, block.data)
        result = self.problem.restore(values, block.data, pipeline, core=block.core)
        core = self.problem.crop(result.image, block.data, block.core)
        converted = convert_samples(core.cpu(), self.target.dtype)
        digest = write_block(self.target, block, converted.samples)
        residual, solution = result.residual, result.solution
        data = residual.absolute / residual.relative if residual.relative > 0 else 0.0
        _, size = self.problem.box_of(block.core, block.data)
        lowest, highest = (float(end) for end in core.aminmax())
        goal = self.problem.settings.tolerance or default_tolerance(self.problem.dtype)
        predicted, trusted_share, digests = write_extras(
            self.problem, self.extras, self.plan.error, block, result.image
        )
        done = BlockResult(
            number=block.number,
            n_samples=math.prod((*values.shape[: -len(size)], *size)),
            squared_residual=residual.absolute**2,
            squared_data=data**2,
            n_iterations=solution.n_iterations,
            certificate=solution.certificate,
            is_solved=solution.status.is_success or solution.certificate <= goal,
            n_clipped=converted.n_clipped,
            lowest=lowest,
            highest=highest,
            n_estimated=core.numel(),
            squared_predicted=predicted,
            trusted_share=trusted_share,
            extra_digests=digests,
            result_digest=digest,
            data_digest=_digest_of(values),
        )
        return done, core

    def _measure_seam(self, block: Block, core: Tensor, pipeline: Pipeline) -> float | None:
        """Return the largest difference between a block and one of the same size whose middle is the block's corner.

        Each is restored from its own data. They are compared in their overlap: the quarter of this block at that
        corner, in three dimensions the eighth. Saturated samples do not count. `None` if the seams of this block are
        not measured.
        """
        if block.number not in self.plan.seams:
            return None
        across, shared = list(block.core), list(block.core)
        for axis, corner in enumerate(corner_of(block, self.problem.image_size)):
            if corner is not None:
                start, end = block.core[axis]
                middle = corner - (end - start) // 2
                across[axis] = middle, min(middle + end - start, self.problem.image_size[axis])
                shared[axis] = middle, corner
        data = self.grid.data_around(across)
        values = self.problem.read(block.batch, data)
        other = self.problem.crop(self.problem.restore(values, data, pipeline).image, data, shared)
        bounds = self.problem.find_bounds(values, data, pipeline)
        for axis, (start, end), (first, _) in zip(space_axes(len(shared)), shared, block.core, strict=True):
            core = core.narrow(axis, start - first, end - start)
        difference = (core - other).abs()
        if bounds is not None:
            difference = difference.masked_fill(self.problem.crop(bounds, data, shared), 0)
        return float(difference.max())


_PIPELINES = threading.local()
"""The pipeline of a thread, by the fingerprint of its plan: it keeps the inverse of the last block."""


def _pipeline_of(task: BlockTask) -> Pipeline:
    kept: dict[str, Pipeline] = vars(_PIPELINES)
    key = task.plan.fingerprint
    if key not in kept:
        kept.clear()
        kept[key] = task.problem.pipeline()
    return kept[key]


def _digest_of(values: Tensor) -> str:
    return samples_digest(values.cpu().contiguous().view(torch.uint8).numpy())


VISIBLE_SEAM = 0.01
"""Difference at a seam, as a part of the range, from which on a result is doubted even if the plan expected it."""
NOTE_ON_BOUNDS = (
    "saturated samples are treated as lower bounds; the error at the seams does not include them, since the estimate "
    "at a saturated sample is a guess"
)


@dataclass(frozen=True)
class BlockSummary:
    """The results of all blocks together.

    Attributes:
        n_redone: blocks that this run restored; the others were done before.
        residual: ‖y − Ax̂‖ / ‖y‖, over the data of all blocks; `residual_norm` is ‖y − Ax̂‖, `residual_rms` the root mean
            square of y − Ax̂.
        n_iterations: the most in any block, as `certificate` is the largest.
        n_unsolved: blocks in which the solver did not reach its tolerance.
        n_clipped: samples that the type of the result cannot hold.
        seam: the largest difference that was measured beside a seam; `None` if none was measured.
        seconds: that all blocks took together.
        predicted_error: root mean square of the expected error; `None` if it is not predicted.
        trusted_share: part of the pixels that are trusted; `None` if no error is predicted.
    """

    n_blocks: int
    n_redone: int
    residual: float
    residual_norm: float
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
    trusted_share: float | None = None

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
            residual_norm=math.sqrt(squared),
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
            trusted_share=trusted / max(n_estimated, 1) if is_predicted else None,
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
        """A sentence on the learned prior, which filled in what the data do not show; `None` for other priors."""
        return describe_prior(self.plan.choices.finest) if self.settings.objective == "photo" else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it was restored, a sentence each."""
        bounds = (NOTE_ON_BOUNDS,) if self.plan.choices.has_bounds else ()
        return (*self.task.problem.resolution.notes, *bounds, *self.task.plan.notes, *self.plan.seam_notes)

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
        return found if self.doubts else replace(found, share=summary.trusted_share or 0.0)

    @property
    def record(self) -> dict[str, Any]:
        """What was done, as JSON can hold it; it goes with the result."""
        settings, resolution, lam = self.settings, self.task.problem.resolution, self.lam
        return {
            "command": "invert",
            "dimensions": self.task.layout.dimensions,
            "boundary": settings.boundary,
            "boundary_reason": resolution.reasons.boundary,
            "padding": format_padding(settings.padding),
            "light": str(settings.light),
            "objective": settings.objective,
            "prior": settings.objective,
            "prior_sentence": self.prior_sentence,
            "finest_measured_detail": self.plan.choices.finest,
            "spacing": settings.spacing and list(settings.spacing),
            "strength": (settings.strength or 1.0) if settings.objective == "photo" else None,
            "lambda": list(lam) if isinstance(lam, tuple) else lam,
            "lambda_reason": None if lam is None else resolution.reasons.lam,
            "penalty": settings.penalty if settings.has_lambda else None,
            "weight": self.plan.choices.weight,
            "iterations": self.plan.choices.iterations,
            "is_trusted": not self.doubts,
            "doubts": [{"reason": str(doubt.reason), "sentence": doubt.sentence} for doubt in self.doubts],
            "warnings": [],
            "notes": list(self.notes),
            "plan": self.task.as_record(),
            "blocks": self.summary and dict(vars(self.summary)),
            "seam": {"predicted": self.plan.halo.predicted, "measured": self.seam},
            **self._measured,
        }

    @property
    def _measured(self) -> dict[str, Any]:
        """The residual and the solver of all blocks, under the names that they have for a picture in one piece."""
        if (summary := self.summary) is None:
            return {}
        ends = self.settings.objective != "photo"
        return {
            "residual": {
                "relative": summary.residual,
                "absolute": summary.residual_norm,
                "root_mean_square": summary.residual_rms,
            },
            "solver": {
                "iterations": summary.n_iterations,
                "certificate": summary.certificate if ends else None,
                "unsolved_blocks": summary.n_unsolved,
            },
            "conditioning": None,
        }

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """Why the result cannot be trusted as it is."""
        found, summary, halo = list(self.plan.doubts), self.summary, self.plan.halo
        if summary is None:
            return tuple(found)
        if summary.n_unsolved:
            sentence = (
                f"in {summary.n_unsolved} of {summary.n_blocks} blocks the solver did not reach its tolerance; the "
                f"largest certificate is {summary.certificate:.2g}"
            )
            found.append(Doubt(DoubtReason.SOLVER, sentence))
        # Both blocks that are compared are cut, and each may be off by the prediction. Flat tiles predict nothing.
        allowed = 2 * halo.predicted * halo.range or SEAM_TOLERANCE * (summary.highest - summary.lowest)
        if summary.seam is not None and summary.seam > allowed:
            sentence = (
                f"with a halo of {halo} blocks differ by {summary.seam:.2g} beside a seam, more than the planned "
                f"{allowed:.2g}; {advise_whole(self.task.problem, self.plan.max_memory)}"
            )
            found.append(Doubt(DoubtReason.SEAM, sentence))
        elif self.seam is not None and self.seam > VISIBLE_SEAM:
            sentence = f"blocks differ by {format_percent(self.seam)} of the range at a seam; use a larger block_size"
            found.append(Doubt(DoubtReason.SEAM, sentence))
        is_lambda_given = self.task.problem.resolution.reasons.lam == GIVEN
        if not found and is_lambda_given and summary.predicted_error is not None and summary.trusted_share == 0:
            found.append(Doubt(DoubtReason.ERROR, UNTRUSTED))
        return tuple(found)
