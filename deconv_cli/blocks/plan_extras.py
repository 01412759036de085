"""Planning what is made of every block besides its estimate: files, and pieces that tell of the error."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from deconv_cli.blocks.block_extras import BlockExtras, TrueImage
from deconv_cli.blocks.block_memory import largest_samples
from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.sample_windows import MAX_SAMPLES, find_windows
from deconv_cli.blocks.sampled_error import sample_error
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions import RegionTarget, cube_sides, open_regions, plan_regions, read_corner
from deconv_cli.vocabulary import OutputDType, Size
from deconv_cli.workflows.progress_listener import ProgressListener, as_listener

MAX_SAMPLES_OF_SIGNALS = 2**13
"""Of a piece of a signal, of which hundreds of probes are drawn."""


@dataclass(frozen=True)
class ExtraFiles:
    """What is asked for besides the estimate; `None` for what is not.

    Attributes:
        truth: file of the true image, of the axes and sizes of the result.
        error_map: file for the error to be expected.
        trust_mask: file for where to trust the result.
        has_page: whether small pictures of the whole are kept, for a page.
    """

    truth: Path | None = None
    error_map: Path | None = None
    trust_mask: Path | None = None
    has_page: bool = False


NO_FILES = ExtraFiles()


def plan_extras(
    problem: BlockProblem, target: RegionTarget, files: ExtraFiles, *, force: bool | None = False
) -> BlockExtras:
    """Decide where all of it goes; nothing is written yet.

    Args:
        problem: what is restored.
        target: the result.
        files: what is asked for.
        force: whether existing files may be replaced; `None` where the caller will find out what is there.

    Raises:
        UsageError: a file that exists, that cannot be written by parts, or a truth of another shape.
        InputRefusedError: the truth cannot be read.
    """

    def planned(path: Path | None, n_channels: int, dtype: OutputDType) -> RegionTarget | None:
        if path is None:
            return None
        return plan_regions(
            path,
            problem.source,
            problem.layout,
            n_channels=n_channels,
            size=problem.image_size,
            output_dtype=dtype,
            force=force,
        )

    return BlockExtras(
        error_map=planned(files.error_map, problem.n_channels, OutputDType.FLOAT32),
        trust_mask=planned(files.trust_mask, 1, OutputDType.UINT8),
        truth=None if files.truth is None else _open_truth(problem, target, files.truth),
        has_thumbnails=files.has_page,
    )


def _open_truth(problem: BlockProblem, target: RegionTarget, path: Path) -> TrueImage:
    n_axes = problem.layout.dimensions
    source = open_regions(path)
    corner = read_corner(source, are_axes_named=False).spanned_by(n_axes)
    result = Layout(target.axes, target.shape, n_axes)
    return TrueImage(source, Layout(corner.axes, source.shape, n_axes)).check(result)


def with_all_units(target: RegionTarget, extras: BlockExtras, n_axes: int) -> RegionTarget:
    """Give the result with units that are whole units of all other files too."""
    layout, units = Layout(target.axes, target.shape, n_axes), list(target.unit)
    places = (*layout.batch_axes, *map(layout.axes.index, layout.space))
    for other in extras.targets:
        own = Layout(other.axes, other.shape, n_axes)
        along = (*own.batch_axes, *map(own.axes.index, own.space))
        for place, axis in zip(places, along, strict=True):
            units[place] = math.lcm(units[place], other.unit[axis])
    return replace(target, unit=tuple(units))


def fingerprint_with(fingerprint: str, extras: BlockExtras) -> str:
    """Hash what is asked for besides together with all that decides the result."""
    described = json.dumps([fingerprint, *extras.describe()], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def plan_error(plan: BlockPlan, problem: BlockProblem, progress: ProgressListener | None = None) -> BlockPlan:
    """Add what pieces tell of the error, where that is asked for.

    Args:
        plan: of the blocks.
        problem: what is restored, with nothing left open.
        progress: is notified what is looked at.
    """
    if not problem.settings.predict:
        return plan
    as_listener(progress).begin("predicting the error of pieces of the picture")
    sides = error_sides(problem, plan.max_memory)
    error = sample_error(problem, find_windows(problem, sides), sides)
    return replace(plan, error=error)


def error_sides(problem: BlockProblem, max_memory: int) -> Size:
    """Give the sides of the pieces that the error is found on, within so many bytes."""
    largest = MAX_SAMPLES if len(problem.data_size) > 1 else MAX_SAMPLES_OF_SIGNALS
    affordable = largest_samples(problem, max_memory, is_tested=True) // 2  # a prediction takes more than restoring
    return cube_sides(problem.data_size, max(min(largest, affordable), 1))
