"""A run over blocks as JSON and as a page: the whole as a thumbnail, and preview tiles pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deconv_cli.blocks.block_extras import Thumbnail
from deconv_cli.blocks.block_grid import Interval
from deconv_cli.blocks.block_reconstruction import BlockReconstruction
from deconv_cli.blocks.block_run import BlockRun
from deconv_cli.blocks.block_task import BlockTask
from deconv_cli.blocks.preview_tiles import Previews, RestoredTile
from deconv_cli.diagnostics.predicted_error import PredictedError
from deconv_cli.report.page import describe_page, fill_page
from deconv_cli.report.page_pictures import ScaledImage, plane_of
from deconv_cli.report.reconstruction_record import SCHEMA, Record, describe_predicted_error
from deconv_cli.report.run import InputFile, Run
from deconv_cli.report.run_record import describe_environment, describe_kernel
from deconv_cli.report.shown_images import Comparison, describe_omission, draw_comparison, images_to_show, show_images
from deconv_cli.report.verdict import Row
from deconv_cli.settings import with_options
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
    expected = run.reconstruction.expected_error
    return {
        "schema": SCHEMA,
        "command": "invert",
        "inputs": [_describe_source(run.task)],
        "kernel": describe_kernel(run.kernel),
        **run.reconstruction.record,
        "predicted_error": expected and {**describe_predicted_error(expected), "sampled_from": expected.pieces},
        "output": _describe_target(run.task),
        "notes": [with_options(note) for note in run.notes],
        "doubts": [with_options(doubt) for doubt in run.reconstruction.doubts],
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
    """Write the page as HTML, as `render_page` does; the run must have thumbnails."""
    problem, first, found = run.task.problem, previews.tiles[0], run.reconstruction
    settings, layout, source = problem.resolution.settings, problem.layout, _input_file(run)
    result = replace(first.result, settings=replace(first.result.settings, boundary=settings.boundary))
    steps = Thumbnail.of(problem.image_size).steps
    spacing = run.spacing and tuple(step * distance for step, distance in zip(steps, run.spacing, strict=True))
    averaged = f", {format_size(steps)} samples averaged into one" if max(steps) > 1 else ""
    omission = describe_omission(layout.n_batch, layout.n_channels, is_color=source.is_picture)
    shown = show_images(_thumbnails(run, previews), omission, spacing, layout.dimensions, is_picture=True)
    tiles = [one for tile in previews.tiles if (one := _compare(run, tile)) is not None]
    whole = [replace(comparison, caption=f"The whole picture{averaged}.") for comparison in shown.comparisons]
    shown = replace(shown, comparisons=(*whole, *tiles))
    page = describe_page(
        run, source, result, previews.diagnosis, found.expected_error, shown, previews.views, found.doubts
    )
    of_piece = [f"In the first piece shown: {warning}" for warning in page.warnings]
    place = f"The numbers of the kernel and the residual belong to the first piece, {_place(first.data)}."
    blocks = (
        f"It was restored in {counted(run.task.grid.n_blocks, 'block')}{averaged and f'; pictures show{averaged[1:]}'}."
    )
    page = replace(
        page,
        warnings=[*found.doubts, *of_piece],
        experts=[*page.experts, blocks, place],
        rows=[*page.rows, *_block_numbers(found)],
    )
    return fill_page(page, describe_block_run(run))


def _input_file(run: BlockInvertRun) -> InputFile:
    source, problem = run.task.problem.source, run.task.problem
    is_picture = problem.resolution.settings.defaults is InputKind.PICTURE
    return InputFile(source.spelled_path, source.shape, problem.layout.axes, source.dtype, "", is_picture, run.spacing)


def _block_numbers(found: BlockReconstruction) -> list[Row]:
    """List how a picture was cut, and what that changed."""
    grid, seam = found.task.grid, found.seam
    blocks = f"{grid.n_blocks} of {format_size(grid.along_space(grid.core))}"
    measured = "not measured" if seam is None else f"{seam:.2g} of the range"
    expected = f"largest difference between neighboring blocks; {found.plan.halo.predicted:.2g} is expected"
    return [
        ("Blocks", blocks, f"each restored with {found.plan.halo} pixels around it"),
        ("Seams", measured, expected),
    ]


def _thumbnails(run: BlockInvertRun, previews: Previews) -> list[ScaledImage]:
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
    return images_to_show(_input_file(run), problem.layout.dimensions, result, data)


def _compare(run: BlockInvertRun, tile: RestoredTile) -> Comparison | None:
    """Lay a tile of the estimate over the data; of a stack, its middle plane."""
    result = _shown_as(tile.result, tile.result.image, None)
    images = images_to_show(_input_file(run), len(tile.data), result, tile.values)
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


def _place(data: Sequence[Interval]) -> str:
    """Name a part of a picture by its rows and columns, counted from one."""
    names = ("planes", "rows", "columns")[-len(data) :]
    return ", ".join(f"{name} {start + 1} to {stop}" for name, (start, stop) in zip(names, data, strict=True))
