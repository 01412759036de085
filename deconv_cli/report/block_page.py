"""A run over blocks as JSON and as a page, which shows one piece of the picture pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deconv_cli.blocks.block_grid import Interval
from deconv_cli.blocks.block_task import BlockReconstruction, BlockTask
from deconv_cli.blocks.invert_blocks import BlockRun
from deconv_cli.blocks.preview_tiles import Preview
from deconv_cli.diagnostics.predicted_error import PredictedError
from deconv_cli.prompt_sentences import with_options
from deconv_cli.report.page import describe_page, fill_page
from deconv_cli.report.reconstruction_record import Record, describe_doubts, describe_predicted_error
from deconv_cli.report.run import InputFile, Run, describe_environment, describe_kernel, describe_light
from deconv_cli.report.shown_images import describe_omission, images_to_show, show_images
from deconv_cli.report.verdict import Row
from deconv_cli.vocabulary import SCHEMA, InputKind, counted, format_size


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
    expected, resolution = run.reconstruction.expected_error, run.task.problem.resolution
    return {
        "schema": SCHEMA,
        "command": "invert",
        "inputs": [_describe_source(run.task)],
        "kernel": describe_kernel(run.kernel),
        **run.reconstruction.record,
        **describe_light(resolution.settings.light, resolution.reasons.light, resolution.tone_curve),
        "predicted_error": expected and {**describe_predicted_error(expected), "sampled_from": expected.pieces},
        "output": _describe_target(run.task),
        "notes": [with_options(note) for note in run.notes],
        "doubts": describe_doubts(run.reconstruction.doubts),
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
        "path": str(source.path),
        "shape": list(source.shape),
        "axes": task.problem.layout.axes,
        "dtype": source.dtype,
        "sha256": None,
        "fingerprint": source.fingerprint(),
    }


def _describe_target(task: BlockTask) -> dict[str, Any]:
    target = task.target
    return {"path": str(target.path), "shape": list(target.shape), "axes": target.axes, "dtype": target.dtype}


def render_block_page(run: BlockInvertRun, preview: Preview) -> str:
    """Write the page as HTML, as `render_page` does, with one piece of the picture pixel by pixel."""
    found, layout, file = run.reconstruction, run.task.problem.layout, run.task.problem.source
    is_picture = run.task.problem.resolution.settings.defaults is InputKind.PICTURE
    source = InputFile(str(file.path), file.shape, layout.axes, file.dtype, "", is_picture, run.spacing)
    doubts = [doubt.sentence for doubt in found.doubts]
    boundary = run.task.problem.resolution.settings.boundary
    result = replace(preview.result, settings=replace(preview.result.settings, boundary=boundary))
    with_error = replace(result, predicted_error=_predicted_error(run, preview))
    images = images_to_show(source, layout.dimensions, with_error, preview.values, preview.diagnosis.residual)
    omission = describe_omission(layout.n_batch, layout.n_channels, is_color=is_picture, number=preview.number)
    shown = show_images(images, omission, run.spacing, layout.dimensions, is_picture=is_picture)
    place = _place(preview.data)
    if shown.comparison is not None and shown.comparison.is_whole:
        seen = preview.data
        if shown.cuts is not None:
            plane = seen[0][0] + shown.cuts.place[0]
            seen = ((plane, plane + 1), *seen[1:])
        shown = replace(shown, comparison=replace(shown.comparison, caption=f"Pixel by pixel: {_place(seen)}."))
    page = describe_page(run, source, result, preview.diagnosis, found.expected_error, shown, preview.views, doubts)
    blocks = f"It was restored in {counted(run.task.grid.n_blocks, 'block')}."
    piece = f"The pictures, and the numbers of the kernel and the residual, belong to one piece: {place}."
    page = replace(
        page,
        warnings=[*doubts, *(f"In the piece shown: {warning}" for warning in page.warnings)],
        experts=[*page.experts, blocks, piece],
        rows=[*page.rows, *_block_numbers(found)],
    )
    return fill_page(page, describe_block_run(run))


def _predicted_error(run: BlockInvertRun, preview: Preview) -> PredictedError | None:
    """Predict the error of the pixels of a piece as that of the blocks was; `None` if it was not."""
    problem, result, error = run.task.problem, preview.result, run.task.plan.error
    if error is None:
        return None
    curve, image = result.error_curve, result.image
    light = image if curve is None else curve.to_light(image, problem.layout.dimensions)
    predicted = error.of_part(light, preview.pixels, problem.image_size)
    return predicted.without_trust() if run.reconstruction.doubts else predicted


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


def _place(data: Sequence[Interval]) -> str:
    """Name a part of a picture by its rows and columns, counted from one."""
    names = ("planes", "rows", "columns")[-len(data) :]
    return ", ".join(
        f"{name} {start + 1} to {stop}" if stop - start > 1 else f"{name.removesuffix('s')} {stop}"
        for name, (start, stop) in zip(names, data, strict=True)
    )
