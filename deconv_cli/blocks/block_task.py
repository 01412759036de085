"""The work on one block: read it with its halo, restore, crop, and write whole units of the result."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deconv_cli.blocks.block_extras import NO_EXTRAS, BlockExtras, ExtraWork, region_of, write_block
from deconv_cli.blocks.block_grid import Block, BlockGrid
from deconv_cli.blocks.block_memory import arithmetic_dtype
from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_problem import BlockProblem, limit_threads
from deconv_cli.blocks.halo_depth import SEAM_TOLERANCE, BlocksDisagreeError
from deconv_cli.blocks.seam_places import corner_of
from deconv_cli.blocks.thumbnail import ThumbnailPart
from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.io.layout import Layout
from deconv_cli.io.records import samples_digest
from deconv_cli.io.regions import RegionTarget
from deconv_cli.io.samples import convert_samples
from deconv_cli.operators.axes import space_axes
from deconv_cli.solvers.solution import default_tolerance
from deconv_cli.workflows.pipeline import Pipeline


@dataclass(frozen=True)
class BlockResult:
    """What is known of a block that is written.

    Attributes:
        number: which one.
        n_samples: data samples that it was restored from.
        squared_residual: ‖y − Ax̂‖² over them.
        squared_data: ‖y‖².
        n_iterations: of the solver.
        certificate: of the solution.
        is_solved: whether the solver reached what was asked for.
        n_clipped: samples that the type of the result could not hold.
        lowest: value of the estimate.
        highest: value of the estimate.
        seam: the largest difference from a block that lies across the seams of this one; `None` if not looked at.
        seconds: that it took.
        squared_predicted: sum of the squared error that is to be expected; `None` where it is not predicted.
        trusted_share: part of its pixels that are trusted.
        squared_error: of the real one; `None` where no truth is known.
        n_estimated: samples of the estimate.
        thumbnails: its parts of small pictures of the whole.
        digests: of what it wrote into each file, in the order of `BlockTask.targets`.
        data_digest: of its data.
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
    seam: float | None
    seconds: float
    squared_predicted: float | None = None
    trusted_share: float = 0.0
    squared_error: float | None = None
    n_estimated: int = 0
    thumbnails: tuple[ThumbnailPart, ...] = ()
    digests: tuple[str, ...] = ()
    data_digest: str = ""

    def as_record(self) -> dict[str, Any]:
        """Give the numbers as JSON can hold them."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> BlockResult:
        """Read what `as_record` gave."""
        parts, digests = (ThumbnailPart(**part) for part in record["thumbnails"]), record["digests"]
        return cls(**record | {"thumbnails": tuple(parts), "digests": tuple(digests)})


@dataclass(frozen=True, eq=False)
class BlockTask:
    """Restores and writes any block of a picture: `task(number)`; can be sent to other processes, and be repeated.

    Attributes:
        problem: what is restored, with nothing left open.
        plan: what was decided.
        target: the result in the making.
        extras: what is asked for besides.
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

    @property
    def extra_work(self) -> ExtraWork:
        """What is done to a block besides."""
        return ExtraWork(self.problem, self.extras, self.plan.error)

    def check_data(self, done: BlockResult) -> None:
        """Refuse by `UsageError` to go on with an input whose samples have changed since a block was restored."""
        block = self.grid.block(done.number)
        # A file can be replaced by one of the same size and time, so its samples alone tell.
        if _digest_of(self.problem.read(block.batch, block.data)) != done.data_digest:
            raise UsageError(
                f"'{self.problem.source.spelled_path}' has other samples than when '{self.target.spelled_path}' was "
                "begun; bring the earlier file back, or give force=True to start over."
            )

    def holds(self, done: BlockResult) -> bool:
        """Tell whether all files still hold what a block wrote."""
        block = self.grid.block(done.number)
        with contextlib.suppress(DeconvError):
            found = [samples_digest(target.read(region_of(target, block))) for target in self.targets]
            return found == list(done.digests)
        return False

    def trust_nothing(self) -> None:
        """Write the mask of a result that is doubted."""
        for number in range(self.grid.n_blocks):
            self.extra_work.clear_mask(self.grid.block(number))

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

    def find_disagreement(self, result: BlockResult) -> BlocksDisagreeError | None:
        """Say by how much a block differs beside its seams; `None` if that is no more than was planned for."""
        halo, predicted = self.plan.halo, self.plan.halo.predicted * self.plan.halo.range
        # Both blocks that are compared are cut, and each may be off by what was predicted. Flat pieces predict nothing.
        allowed = 2 * predicted or SEAM_TOLERANCE * (result.highest - result.lowest)
        if result.seam is None or result.seam <= allowed:
            return None
        return BlocksDisagreeError(
            f"with a halo of {halo} blocks differ by {result.seam:.2g} beside a seam, but {allowed:.2g} is the most "
            f"that was planned for"
        )

    def __call__(self, number: int) -> BlockResult:
        """Do the work.

        Raises:
            MalformedInputError: the file is damaged there, or holds NaN or Inf.
            FileAccessError: the result cannot be written.
            UntrustworthyResultError: the estimate holds NaN or Inf.
        """
        started = time.perf_counter()
        limit_threads(self.plan.n_threads)
        block, pipeline = self.grid.block(number), _pipeline_of(self)
        done, core = self._restore(block, pipeline)
        seam = self._seam(block, core, pipeline)  # once what the block itself took is free again
        return replace(done, seam=seam, seconds=time.perf_counter() - started)

    def _restore(self, block: Block, pipeline: Pipeline) -> tuple[BlockResult, Tensor]:
        """Restore and write a block; give what is known of it, and its estimate, shape `(B, C, *core)`."""
        values = self.problem.read(block.batch, block.data)
        result = self.problem.restore(values, block.data, pipeline)
        core = self.problem.crop(result.image, block.data, block.core)
        converted = convert_samples(core.cpu(), self.target.dtype)
        digest = write_block(self.target, block, converted.samples)
        residual = result.residual
        data = residual.absolute / residual.relative if residual.relative > 0 else 0.0
        lowest, highest = (float(end) for end in core.aminmax())
        goal = self.problem.settings.tolerance or default_tolerance(arithmetic_dtype(self.problem))
        extra = self.extra_work(block, values, result.image)
        done = BlockResult(
            number=block.number,
            n_samples=values.numel(),
            squared_residual=residual.absolute**2,
            squared_data=data**2,
            n_iterations=result.solution.n_iterations,
            certificate=result.solution.certificate,
            is_solved=result.solution.status.is_success or result.solution.certificate <= goal,
            n_clipped=converted.n_clipped,
            lowest=lowest,
            highest=highest,
            seam=None,
            seconds=0.0,
            squared_predicted=extra.squared_predicted,
            trusted_share=extra.trusted_share,
            squared_error=extra.squared_error,
            n_estimated=core.numel(),
            thumbnails=extra.thumbnails,
            digests=(*extra.digests, digest),
            data_digest=_digest_of(values),
        )
        return done, core

    def _seam(self, block: Block, core: Tensor, pipeline: Pipeline) -> float | None:
        """Compare a block with one of the same size that lies across its seams, and has their corner in its middle.

        Both are restored from their own data. What they have in common is compared: the quarter of this block, or in
        three dimensions the eighth, towards that corner, where four blocks meet, or eight; not at samples that are no
        more than bounds.
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


def _digest_of(values: Tensor) -> str:
    return samples_digest(values.cpu().contiguous().view(torch.uint8).numpy())


class _Pipelines(threading.local):
    """The pipeline of a thread, by the fingerprint of its plan: it keeps the inverse of the last block."""

    def __init__(self) -> None:
        self.by_plan: dict[str, Pipeline] = {}


_PIPELINES = _Pipelines()


def _pipeline_of(task: BlockTask) -> Pipeline:
    key, kept = task.plan.fingerprint, _PIPELINES.by_plan
    if key not in kept:
        kept.clear()
        kept[key] = task.problem.pipeline()
    return kept[key]
