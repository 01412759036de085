"""A run over blocks as a table: the plan, or the result and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands.console import print_note, print_table, print_warning, with_options
from deconv_cli.commands.progress import format_duration
from deconv_cli.commands.summary import error_rows
from deconv_cli.vocabulary import counted, format_lambda, format_memory, format_percent, format_size

if TYPE_CHECKING:
    from deconv_cli.blocks.block_reconstruction import BlockReconstruction
    from deconv_cli.blocks.block_run import BlockRun
    from deconv_cli.blocks.block_task import BlockTask
    from deconv_cli.io.regions import RegionTarget
    from deconv_cli.report.block_page import BlockInvertRun


def print_block_plan(run: BlockRun, target: Path, expected_s: float) -> None:
    """Print what would be done on stderr, and how many seconds it would take."""
    from deconv_cli.io.files import is_there

    task = run.task
    rows = [
        ("input", _input(task)),
        *_plan_rows(task),
        ("time", f"about {format_duration(expected_s)}"),
        ("output", _output(task.target)),
        *(("", _output(extra)) for extra in task.extras.targets),
    ]
    print_table("deconv invert --dry-run", rows)
    if is_there(target):
        print_note(f"the output '{target}' exists already; a run has to be given --force to replace it")


def _output(target: RegionTarget) -> str:
    return f"{target.spelled_path}  {format_size(target.shape)} {target.dtype}, {format_memory(target.n_bytes)}"


def print_block_summary(run: BlockInvertRun, *, verbose: bool = False) -> None:
    """Print what was done on stderr: a table, warnings and notes."""
    found, environment, target = run.reconstruction, run.environment, run.task.target
    summary, settings, resolution = found.summary, found.settings, found.task.problem.resolution
    assert summary is not None
    rows = [
        ("input", _input(found.task)),
        ("kernel", f"{run.kernel.path}  {format_size(run.kernel.shape)} {run.kernel.convention}"),
        ("boundary", f"{settings.boundary}: {resolution.reasons.boundary}"),
        *([("light", resolution.reasons.light)] if found.task.problem.source.is_picture else []),
        _objective_row(found),
        *_plan_rows(found.task),
        *_seam_rows(found),
        ("residual", f"{summary.residual_rms:.3g} rms, {format_percent(summary.residual, 3)} of the data"),
        *_error_rows(found),
    ]
    if verbose:
        rows += [
            ("solver", f"{counted(summary.n_iterations, 'iteration')} at most, certificate {summary.certificate:.2g}"),
            ("values", f"{summary.lowest:.4g} to {summary.highest:.4g}"),
            ("threads", f"{found.plan.n_threads} a block"),
        ]
    memory = format_memory(environment.peak_memory_bytes)
    rows += [
        ("output", f"{target.spelled_path}  {format_size(target.shape)} {target.dtype}"),
        ("cost", f"{environment.time_s:.2f} s, {memory}, {environment.device}, {environment.dtype}"),
    ]
    print_table("deconv invert", rows)
    for doubt in found.doubts:
        print_warning(with_options(doubt))
    for note in run.notes:
        print_note(with_options(note))


def _objective_row(found: BlockReconstruction) -> tuple[str, str]:
    """Name the objective, with what was chosen for all blocks."""
    settings, choices = found.settings, found.plan.choices
    if found.lam is not None:
        reason = found.task.problem.resolution.reasons.lam
        return "λ", f"{format_lambda(found.lam)}, penalty {settings.penalty}: {reason}"
    if found.prior_sentence is not None:
        return "prior", f"photo: {found.prior_sentence}"
    more = "" if choices.weight is None else f", weight {choices.weight:.4g}"
    more += "" if choices.iterations is None else f", {counted(choices.iterations, 'iteration')}"
    more += "" if choices.rho is None else f" at ρ {choices.rho:.3g}"
    return "minimized", f"{settings.objective}{more}"


def _seam_rows(found: BlockReconstruction) -> list[tuple[str, str]]:
    """Say how much blocks differ beside their seams, if there are any."""
    if found.summary is None or not any(found.task.grid.is_cut):
        return []
    measured = f"{found.seam:.2g} of the range, measured at {counted(found.summary.n_seams, 'place')}"
    return [("at the seams", "not measured" if found.seam is None else measured)]


def _error_rows(found: BlockReconstruction) -> list[tuple[str, str]]:
    """Say how large the expected error is, and what it was predicted on."""
    expected = found.expected_error
    if expected is None:
        return []
    is_light = found.task.problem.resolution.tone_curve is not None and found.settings.is_linear
    first, *others = error_rows(expected, " of light" if is_light else "", is_trusted=not found.doubts)
    return [first, ("", f"by {expected.pieces}"), *others]


def _input(task: BlockTask) -> str:
    source = task.problem.source
    return f"{source.spelled_path}  {format_size(source.shape)} {task.problem.layout.axes} {source.dtype}"


def _plan_rows(task: BlockTask) -> list[tuple[str, str]]:
    """Say how the picture is cut."""
    grid, halo = task.grid, task.plan.halo
    memory = ("memory", f"about {format_memory(task.plan.block_bytes)} a block")
    if not any(grid.is_cut):
        one = "the picture is one block" if grid.n_blocks == 1 else f"{grid.n_blocks}, each of a whole image"
        return [("blocks", f"{one} of {format_size(task.problem.image_size)}; nothing is cut"), memory]
    return [
        ("blocks", f"{grid.n_blocks} of {format_size(grid.along_space(grid.core))}, with a halo of {halo}"),
        memory,
        ("seams", f"at most {halo.predicted:.2g} of the range is expected"),
    ]
