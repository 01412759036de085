"""A run over blocks as JSON and as a page: the whole as a thumbnail, and preview tiles pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deconv_cli.blocks.block_extras import N_CHANNELS, Thumbnail
from deconv_cli.blocks.block_grid import Interval
from deconv_cli.blocks.block_reconstruction import BlockReconstruction
from deconv_cli.blocks.block_run import BlockRun
from deconv_cli.blocks.block_task import BlockTask
from deconv_cli.blocks.preview_tiles import Previews, RestoredTile
from deconv_cli.blocks.sampled_error import SampledError
from deconv_cli.diagnostics.predicted_error import PredictedError
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.report.orthogonal_cuts import plane_of
from deconv_cli.report.page import (
    PageContents,
    PageHeader,
    as_sentence,
    describe_lambda,
    describe_trust,
    draw_plots,
    fill_page,
    key_numbers,
)
from deconv_cli.report.page_pictures import ScaledImage
from deconv_cli.report.page_sections import describe_plan_section
from deconv_cli.report.reconstruction_record import SCHEMA, Record, describe_predicted_error
from deconv_cli.report.run import InputFile, InvertRun, OutputFile, Run
from deconv_cli.report.run_record import describe_environment, describe_kernel
from deconv_cli.report.shown_images import Comparison, draw_comparison, draw_views, images_to_show, show_images
from deconv_cli.vocabulary import InputKind, counted, format_size
from deconv_cli.workflows.reconstruction import Reconstruction


@dataclass(frozen=True, eq=False)
class BlockInvertRun(Run):
    """A finished run of `deconv invert` over blocks; `spacing` is that of its samples in micrometers, if known."""

    reconstruction: BlockReconstruction
    spacing: tuple[float, ...] | None = None

    @property
    def task(self) -> BlockTask:
        """The work on each block; it knows the input and the output."""
        return self.reconstruction.task


def describe_block_run(run: BlockInvertRun) -> Record:
    """Describe a run as a JSON object; the samples have no hash, since the file may be of any size."""
    return {
        "schema": SCHEMA,
        "command": "invert",
        "inputs": [_describe_source(run.task)],
        "kernel": describe_kernel(run.kernel),
        **run.reconstruction.record,
        "predicted_error": _describe_error(run.reconstruction.expected_error),
        "output": _describe_target(run.task),
        "notes": list(run.notes),
        **describe_environment(run.environment),
        "rerun": run.rerun,
    }


def describe_block_plan(run: BlockRun, n_done: int | None = None) -> Record:
    """Describe the plan of a run as a JSON object; `n_done` blocks are done if it is a share of several jobs."""
    lams = run.task.plan.choices.lams
    return {
        "schema": SCHEMA,
        "command": "invert",
        "dry_run": n_done is None,
        "n_done": n_done or 0,
        "inputs": [_describe_source(run.task)],
        "lambda": lams[0] if len(lams) == 1 else list(lams) or None,
        "weight": run.task.plan.choices.weight,
        "iterations": run.task.plan.choices.iterations,
        "plan": run.task.as_record(),
        "output": {**_describe_target(run.task), "bytes": run.task.target.n_bytes},
    }


def _describe_error(expected: SampledError | None) -> Record | None:
    """Describe the expected error, and the pieces that it was measured on."""
    if expected is None:
        return None
    return {**describe_predicted_error(expected), "sampled_from": expected.pieces}


def _describe_source(task: BlockTask) -> dict[str, Any]:
    """Describe the input, without a hash of all its bytes."""
    source = task.problem.source
    return {
        "path": source.spelled_path,
        "shape": list(source.shape),
        "axes": task.problem.layout.axes,
        "dtype": source.dtype,
        "sha256": None,
        "fingerprint": source.fingerprint(),
    }


def _describe_target(task: BlockTask) -> dict[str, Any]:
    target = task.target
    return {"path": target.spelled_path, "shape": list(target.shape), "axes": target.axes, "dtype": target.dtype}


def render_block_page(run: BlockInvertRun, previews: Previews) -> str:
    """Write the page as HTML, as `render_page` does; the run has to have thumbnails."""
    problem, first = run.task.problem, previews.tiles[0]
    n_axes, whole = problem.layout.dimensions, problem.resolution.settings
    result = replace(first.result, settings=replace(first.result.settings, boundary=whole.boundary))
    images, omission = _thumbnails(run, previews)
    steps = Thumbnail.of(problem.image_size).steps
    spacing = run.spacing and tuple(step * distance for step, distance in zip(steps, run.spacing, strict=True))
    shown = show_images(images, omission, spacing, n_axes, is_picture=True)  # of one kind, or on scales of their own
    averaged = f", {format_size(steps)} pixels averaged into one" if max(steps) > 1 else ""
    comparisons = [replace(comparison, caption=f"The whole picture{averaged}.") for comparison in shown.comparisons]
    comparisons += [found for tile in previews.tiles if (found := _compare(run, previews, tile)) is not None]
    piece_images, _ = images_to_show(_as_run(run, first.result), previews.diagnosis, first.values, None)
    contents = PageContents(
        title=Path(problem.source.path).name,
        header=_write_header(run, result, previews),
        shown=replace(shown, comparisons=tuple(comparisons)),
        views=draw_views(previews.views, piece_images, n_axes),
        plots=draw_plots(first.result, run.reconstruction.expected_error),
        key_numbers=key_numbers(first.result, previews.diagnosis),
        spacing=run.spacing,
        varied="strengths" if first.result.settings.objective == "photo" else "λ",
        numbers_of=f"Numbers and plots are of the first piece, {_place(first.data)}; those of the error of the whole.",
        plan=describe_plan_section(run.reconstruction, [tile.data for tile in previews.tiles]),
    )
    return fill_page(run, contents, describe_block_run(run))


def _write_header(run: BlockInvertRun, result: Reconstruction, previews: Previews) -> PageHeader:
    """Describe a run in a few plain sentences."""
    found, source, kernel = run.reconstruction, run.task.problem.source, run.kernel
    blocks = counted(run.task.grid.n_blocks, "block")
    done = (
        f"{source.path} ({format_size(source.shape)}, {source.dtype}) was restored in {blocks} "
        f"from what the kernel {kernel.path} ({format_size(kernel.shape)} taps) made of it; "
        f"{as_rule(result.boundary).description}."
    )
    if source.is_picture:
        done = f"{done} It was restored {result.reasons.light}."
    trust = describe_trust(result, previews.diagnosis, found.expected_error, is_trusted=not found.doubts)
    of_piece = [f"In the first piece that is shown: {as_sentence(line)}" for line in result.warnings]
    warnings = (*(as_sentence(doubt) for doubt in found.doubts), *of_piece)
    return PageHeader(done, describe_lambda(result), trust, warnings)


def _thumbnails(run: BlockInvertRun, previews: Previews) -> tuple[list[ScaledImage], str | None]:
    """Show thumbnails of the data, the estimate and the expected error."""
    found, summary = run.reconstruction, run.reconstruction.summary
    assert summary is not None
    problem = run.task.problem
    of_image, of_data = Thumbnail.of(problem.image_size), Thumbnail.of(problem.data_size)
    data, estimate = of_data.assemble("input", summary.thumbnails), of_image.assemble("estimate", summary.thumbnails)
    squared, expected = of_image.assemble("squared error", summary.thumbnails), found.expected_error
    assert data is not None
    assert estimate is not None
    predicted = None
    if squared is not None and expected is not None:
        depth = expected.trusted_depth
        trusted = of_image.distance >= (max(of_image.size) if depth is None else depth)
        parts = {name: getattr(expected, name) for name in ("bands", "sigma", "exponent", "n_probes", "seed")}
        predicted = PredictedError(**parts, trusted_depth=depth, map=squared.sqrt(), trusted=trusted)
    result = _shown_as(previews.tiles[0].result, estimate, predicted)
    images, _ = images_to_show(_as_run(run, result), previews.diagnosis, data, None)
    return [image for image in images if image.name != "Residual"], _omission(run)


def _omission(run: BlockInvertRun) -> str | None:
    """Say which images and channels have no thumbnail."""
    layout = run.task.layout
    parts = [f"the first of {layout.n_batch} images"] if layout.n_batch > 1 else []
    if layout.n_channels > N_CHANNELS:
        parts.append(f"the first {N_CHANNELS} of {layout.n_channels} channels")
    shown = [f"Shown: {', '.join(parts)}."] if parts else []
    steps = Thumbnail.of(run.task.problem.image_size).steps
    averaged = len(steps) == 3 and max(steps) > 1  # below pictures their caption says so
    return " ".join([*shown, *([f"{format_size(steps)} samples were averaged into one."] if averaged else [])]) or None


def _compare(run: BlockInvertRun, previews: Previews, tile: RestoredTile) -> Comparison | None:
    """Lay a tile of the estimate over the data; of a stack, its middle plane."""
    result = _shown_as(tile.result, tile.result.image, None)
    images, _ = images_to_show(_as_run(run, result), previews.diagnosis, tile.values, None)
    place = _place(tile.data)
    if len(tile.data) == 3:
        middle = tile.values.shape[-3] // 2
        images = [plane_of(image, middle) for image in images]
        place = f"plane {tile.data[0][0] + middle + 1} of {place}"
    found = draw_comparison(images) if len(tile.data) > 1 else None
    return found and replace(found, caption=f"Pixel by pixel: {place}.", is_whole=False)


def _shown_as(result: Reconstruction, image: Tensor, predicted: PredictedError | None) -> Reconstruction:
    """Replace the image of a reconstruction; it is doubted only if the whole result is."""
    return replace(result, image=image, predicted_error=predicted, residual_tests=None, clipping=None, channels=())


def _as_run(run: BlockInvertRun, result: Reconstruction) -> InvertRun:
    """Describe a part of the picture as if it were one."""
    source, target = run.task.problem.source, run.task.target
    return InvertRun(
        kernel=run.kernel,
        notes=run.notes,
        environment=run.environment,
        rerun=run.rerun,
        command="invert",
        source=InputFile(
            source.spelled_path,
            source.shape,
            run.task.problem.layout.axes,
            source.dtype,
            source.fingerprint(),
            run.task.problem.resolution.settings.defaults is InputKind.PICTURE,
            run.spacing,
        ),
        output=OutputFile(target.spelled_path, target.shape, target.axes, target.dtype, ""),
        reconstruction=result,
        diagnosis=None,
        factor=None,
    )


def _place(data: Sequence[Interval]) -> str:
    """Name a part of a picture by its rows and columns, counted from one."""
    names = ("planes", "rows", "columns")[-len(data) :]
    return ", ".join(f"{name} {start + 1} to {stop}" for name, (start, stop) in zip(names, data, strict=True))
