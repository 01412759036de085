"""Restore a file into another file, block by block: `deconv invert` from Python for pictures larger than memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deconv_cli.blocks.block_extras import NO_FILES, ExtraFiles, plan_extras, plan_file
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.block_problem import BlockProblem, default_memory
from deconv_cli.blocks.block_reconstruction import BlockReconstruction
from deconv_cli.blocks.block_run import BlockListener, BlockRun
from deconv_cli.errors import UsageError, as_path
from deconv_cli.io.image import ImageFile
from deconv_cli.io.layout import Layout
from deconv_cli.io.limits import allowing
from deconv_cli.io.region_arrays import RegionSource, RegionTarget
from deconv_cli.io.regions import open_regions, read_corner
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.parts import BOUNDARIES
from deconv_cli.schedulers.local_workers import SerialScheduler
from deconv_cli.schedulers.scheduler import Scheduler
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.solution import default_tolerance
from deconv_cli.vocabulary import InputKind, OutputDType
from deconv_cli.workflows.arithmetic import check_kernel
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.resolve_settings import NO_METADATA, InputMetadata

CLOSER = 0.1
"""Factor on the tolerance of linear estimates under an unknown boundary; see `_solved_closely`."""
CLOSE_STEPS = 1e-5
"""Tolerance of the inverse in the steps of prior photo: at 1e-3 blocks differ by 3e-4 to 9e-4 of the range far from a
cut, at 1e-5 hardly more than at none at all."""


@dataclass(frozen=True)
class LargeFileOptions:
    """How a large file is read and written.

    Attributes:
        axes: letters of the stored axes, in place of what the file says.
        output_dtype: sample type of the result; `None` for float32.
        force: whether an existing result may be replaced.
        resume: whether to resume an earlier run.
        series: number of the image, if the file holds several, or `tensor` its name.
        extra: what is made beside the result; all of it needs the prediction of the error.
    """

    axes: str | None = None
    output_dtype: OutputDType | None = None
    force: bool = False
    resume: bool = False
    series: int | None = None
    tensor: str | None = None
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
        source: the file; TIFF, .npy or another format that is read by parts.
        kernel: the taps that blurred it, as for `deconv_cli.invert`.
        target: the result; its suffix decides the format.
        settings: how to undo the blur; or give its fields one by one.
        files: how the files are read and written.
        blocks: how the picture is cut; by default within half of the free memory.
        scheduler: who works on the blocks; by default this process, block by block.
        progress: is called with the number of blocks that are done and of all.
        options: fields of `ReconstructionSettings`; defaults are those of a picture if the file is one.

    Raises:
        UsageError: settings contradict one another, or the estimate depends on data too far away for blocks.
        TooLargeError: the smallest block does not fit the memory.
        InputRefusedError: the file is damaged, or holds NaN or Inf.
        FileAccessError: a file cannot be read or written.
    """
    if settings is not None and options:
        raise UsageError(f"settings were given both as a record and as {next(iter(options))}; use one or the other.")
    check_kernel(kernel)
    files, blocks_ = files or LargeFileOptions(), blocks or BlockOptions(default_memory())
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
    run = BlockRun.prepare(problem, planned, blocks_, extras=extras, resume=files.resume, force=files.force)
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
    """Resolve the settings for a large picture without reading more than a corner of it.

    The axes of space of the corner are those of the kernel; `metadata` describes the picture besides its samples.

    Raises:
        UsageError: settings contradict one another, or blocks cannot take them or the kernel.
    """
    if isinstance(kernel, KernelField):
        raise UsageError(
            "blocks cannot undo a kernel that varies over the frame; restore a picture that fits the memory as a "
            "whole, or a part of it with the kernel of its place, such as field.taps[0, 0]."
        )
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
    layout = Layout(corner.axes, source.shape, corner.dimensions)
    problem = BlockProblem(source, layout, kernel, settings, resolution, bias)
    return _solved_closely(problem.with_settings(predict=False))  # the error is predicted on tiles alone


def _solved_closely(problem: BlockProblem) -> BlockProblem:
    """Lower the tolerance of linear estimates under an unknown boundary, and of prior photo.

    Few data determine the pixels on an edge of the frame. At the usual tolerance they differ between blocks by more
    than a cut leaves elsewhere, and by the more the larger a block is. The six steps of prior photo are solved closely
    under every boundary: at their usual tolerance two blocks differ by as much as seams may.
    """
    settings = problem.resolved
    if settings.objective == "photo":
        return problem.with_settings(tolerance=settings.tolerance or CLOSE_STEPS)
    if settings.is_linear and BOUNDARIES[settings.boundary].is_unknown:
        return problem.with_settings(tolerance=(settings.tolerance or default_tolerance(problem.dtype)) * CLOSER)
    return problem


def _check_settings(settings: ResolvedSettings) -> None:
    """Refuse by `UsageError` what blocks cannot take."""
    if not settings.layer.is_plain:
        raise UsageError(
            "blocks can undo plain convolutions only, but this layer has a stride, a dilation or groups, or is "
            "transposed; restore a tensor that fits the memory."
        )
    if BOUNDARIES[settings.boundary].is_periodic:
        raise UsageError(
            f"boundary {settings.boundary} joins opposite edges, which never lie in one block; use another boundary, "
            "or more memory."
        )
    if settings.objective == "tv":
        raise UsageError(
            "prior tv needs the whole image, because its iteration ends elsewhere in each block; use prior photo or "
            "quadratic, or more memory."
        )


def plan_target(problem: BlockProblem, path: Path, files: LargeFileOptions) -> RegionTarget:
    """Plan the file of the result; nothing is written yet."""
    force = None if files.resume else files.force
    return plan_file(problem, path, problem.n_channels, files.output_dtype, force=force)
