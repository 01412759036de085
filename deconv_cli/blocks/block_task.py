"""The work on one block: read it with its halo, restore it, crop it, and write whole units of the result."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deconv_cli.blocks.block_extras import NO_EXTRAS, BlockExtras, region_of, write_block, write_extras
from deconv_cli.blocks.block_grid import Block, BlockGrid
from deconv_cli.blocks.block_plan import BlockPlan, corner_of
from deconv_cli.blocks.block_problem import BlockProblem, limit_threads
from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.io.layout import Layout, convert_samples
from deconv_cli.io.records import samples_digest
from deconv_cli.io.region_arrays import RegionTarget
from deconv_cli.operators.axes import space_axes
from deconv_cli.solvers.solution import default_tolerance
from deconv_cli.workflows.pipeline import Pipeline


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

        A file can be replaced by one of the same size and time, so only its samples tell.
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
