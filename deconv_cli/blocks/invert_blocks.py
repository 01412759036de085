"""From a file into a file, block by block: the twin of `deconv invert` for pictures that memory does not hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deconv_cli.blocks.block_memory import arithmetic_dtype, default_memory
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.block_reconstruction import BlockReconstruction
from deconv_cli.blocks.block_run import BlockRun
from deconv_cli.blocks.cut_blocks import BlockOptions
from deconv_cli.blocks.plan_extras import NO_FILES, ExtraFiles, plan_extras
from deconv_cli.blocks.run_blocks import BlockListener
from deconv_cli.errors import UsageError, as_path
from deconv_cli.io.image import ImageFile
from deconv_cli.io.layout import Layout
from deconv_cli.io.limits import allowing
from deconv_cli.io.regions import RegionSource, RegionTarget, open_regions, plan_regions, read_corner
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.parts import BOUNDARIES
from deconv_cli.schedulers.scheduler import Scheduler
from deconv_cli.schedulers.serial import SerialScheduler
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.solvers.solution import default_tolerance
from deconv_cli.vocabulary import InputKind, OutputDType
from deconv_cli.workflows.arithmetic import check_kernel
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.resolution import NO_METADATA, InputMetadata

CLOSER = 0.1
"""Of the tolerance of a linear solver, the part to which blocks are solved whose edge pixels few data determine."""
CLOSE_STEPS = 1e-5
"""Tolerance of the inverse in the steps of prior photo: 1e-3 left differences of 3e-4 to 9e-4 of the range far from a
cut, 1e-5 hardly more than none at all."""


@dataclass(frozen=True)
class LargeFileOptions:
    """How a large file is read and written.

    Attributes:
        axes: letters of the stored axes, in place of what the file says.
        series: number of the image, where the file holds several.
        tensor: name of the tensor, likewise.
        n_levels: how many resolutions of the result are stored, each half the one before.
        output_dtype: sample type of the result; `None` for float32.
        force: whether an existing result may be replaced.
        resume: whether to go on where an earlier run ended.
        extra: what is asked for besides the result; all of it needs the prediction of the error.
    """

    axes: str | None = None
    output_dtype: OutputDType | None = None
    force: bool = False
    resume: bool = False
    series: int | None = None
    tensor: str | None = None
    n_levels: int = 1
    extra: ExtraFiles = NO_FILES


def invert_blocks(
    source: str | Path,
    kernel: Tensor,
    target: str | Path,
    *,
    settings: ReconstructionSettings | None = None,
    files: LargeFileOptions | None = None,
    blocks: BlockOptions | None = None,
    scheduler: Scheduler | None = None,
    progress: BlockListener | None = None,
    **options: Any,  # noqa: ANN401
) -> BlockReconstruction:
    """Restore a picture or a stack from a file into a file, whatever its size.

    Args:
        source: the file; TIFF, .npy and what else is read by parts.
        kernel: the taps that blurred it, as for `deconv_cli.invert`.
        target: the result; its suffix decides the format.
        settings: how to undo the blur; or give its fields one by one.
        files: how the files are read and written.
        blocks: how the picture is cut; by default within half of the memory that is free.
        scheduler: who works on the blocks; by default this process, one after another.
        progress: is called with the number of blocks that are done and of all.
        options: fields of `ReconstructionSettings`; those left open are as for a picture where the file is one.

    Raises:
        UsageError: settings that contradict one another, or an estimate that depends on data too far away for blocks.
        TooLargeError: the smallest block does not fit the memory.
        InputRefusedError: the file is damaged, or holds NaN or Inf.
        FileAccessError: a file cannot be read or written.
    """
    if settings is not None and options:
        raise UsageError(f"settings were given as a record and as {next(iter(options))} too; use one or the other.")
    check_kernel(kernel)
    files = files or LargeFileOptions()
    with allowing(None if blocks is None else blocks.max_memory):
        opened = open_regions(as_path(source), axes=files.axes, series=files.series, tensor=files.tensor)
    if settings is None:
        kind = InputKind.PICTURE if opened.is_picture else InputKind.TENSOR
        settings = ReconstructionSettings.of(**{"defaults": kind} | options)
    corner = read_corner(opened, are_axes_named=files.axes is not None)
    corner = corner.spanned_by(Kernel.of_any(kernel, dimensions=settings.dimensions).n_axes)
    if files.extra != NO_FILES:
        settings = replace(settings, predict=True)
    problem = lay_out_problem(opened, corner, kernel, settings)
    planned = plan_target(problem, as_path(target), files)
    extras = plan_extras(problem, planned, files.extra, force=None if files.resume else files.force)
    options_ = blocks or BlockOptions(default_memory())
    run = BlockRun.prepare(problem, planned, options_, extras=extras, resume=files.resume, force=files.force)
    return run.finish(scheduler or SerialScheduler(), lambda found: found.record, progress)


def lay_out_problem(
    source: RegionSource,
    corner: ImageFile,
    kernel: Tensor | KernelField,
    settings: ReconstructionSettings,
    *,
    bias: Tensor | None = None,
    metadata: InputMetadata = NO_METADATA,
) -> BlockProblem:
    """Resolve the settings for a large picture; nothing more of it is read.

    Args:
        source: the picture.
        corner: a corner of it, whose axes of space are those of the kernel.
        kernel: the taps that blurred it.
        settings: how to undo the blur.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        metadata: what is known of the picture besides its samples and their type.

    Raises:
        UsageError: settings that contradict one another, or a kernel that blocks cannot take.
    """
    if isinstance(kernel, KernelField):
        raise UsageError(
            "a kernel that varies over the frame is not undone in blocks; restore a picture that fits the memory as a "
            "whole, or a part of one with the kernel of its place, such as field.taps[0, 0]."
        )
    check_kernel(kernel)
    settings = replace(settings, dimensions=corner.dimensions)
    resolution = Pipeline(kernel, settings, bias=bias).resolve(
        replace(
            metadata,
            record=corner.record,
            tone_curve=corner.tone_curve,
            sample_type=source.dtype,
            spacing=corner.spacing,
        )
    )
    _check_settings(resolution.settings)
    # Of pieces alone: what those tell is spread over all blocks.
    resolution = replace(resolution, settings=replace(resolution.settings, predict=False))
    layout = Layout(corner.axes, source.shape, corner.dimensions)
    return _solved_closely(BlockProblem(source, layout, kernel, settings, resolution, bias))


def _solved_closely(problem: BlockProblem) -> BlockProblem:
    """Lower the tolerance of linear estimates under an unknown boundary, and of prior photo.

    Few data determine the pixels on an edge of the frame. Where an iteration ends at the usual tolerance, they are off
    by more than a cut leaves elsewhere, and by the more the larger a block is. The six steps of prior photo are solved
    closely under every boundary: at their usual tolerance two blocks differ by as much as seams may.
    """
    settings = problem.resolution.settings
    if settings.objective == "photo":
        tolerance = settings.tolerance or CLOSE_STEPS
    elif settings.is_linear and BOUNDARIES[settings.boundary].is_unknown:
        tolerance = (settings.tolerance or default_tolerance(arithmetic_dtype(problem))) * CLOSER
    else:
        return problem
    return replace(problem, resolution=replace(problem.resolution, settings=replace(settings, tolerance=tolerance)))


def _check_settings(settings: ReconstructionSettings) -> None:
    """Refuse by `UsageError` what is no matter of blocks."""
    if not settings.layer.is_plain:
        raise UsageError(
            "blocks are made of plain convolutions, but this layer has a stride, a dilation or groups, or is "
            "transposed; restore a tensor that fits the memory."
        )
    if settings.objective == "photo" and BOUNDARIES[settings.boundary].is_periodic:
        raise UsageError(
            "prior photo does not see across the frame of a picture that repeats itself, so its blocks would disagree "
            "there; use another boundary, or more memory."
        )
    if settings.rcond is not None:
        raise UsageError("rcond truncates on the torus of the whole image, which blocks do not have; use lam instead.")


def plan_target(problem: BlockProblem, path: Path, files: LargeFileOptions) -> RegionTarget:
    """Decide where the result goes and as what; nothing is written yet."""
    return plan_regions(
        path,
        problem.source,
        problem.layout,
        n_channels=problem.n_channels,
        size=problem.image_size,
        output_dtype=files.output_dtype,
        force=None if files.resume else files.force,
        n_levels=files.n_levels,
    )
