"""The plan of a run over blocks: every decision that is made before the first block, once for all processes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from deconv_cli.blocks.block_extras import BlockExtras, ErrorSample, sample_error
from deconv_cli.blocks.block_grid import Block, BlockGrid, choose_core
from deconv_cli.blocks.block_problem import (
    SHARE,
    BlockProblem,
    advise_whole,
    block_bytes,
    count_cores,
    largest_samples,
    limit_threads,
)
from deconv_cli.blocks.halo_depth import SEAM_TOLERANCE, HaloChoice, choose_halo
from deconv_cli.blocks.preview_tiles import (
    FixedChoices,
    PreviewTile,
    contrast_of,
    find_tiles,
    fix_choices,
    tile_sides,
)
from deconv_cli.diagnostics.boundary_modes import GOLDEN_SECTION
from deconv_cli.diagnostics.predicted_error import DETAIL_REACH
from deconv_cli.errors import TooLargeError
from deconv_cli.io.layout import Layout
from deconv_cli.io.region_arrays import RegionTarget
from deconv_cli.io.regions import cube_sides
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.vocabulary import COUNTED, Size, format_memory, format_percent, format_size, package_version
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.trust import Doubt

MAX_SIDES = {1: 2**20, 2: 4096, 3: 512}
"""Samples of a block and its halo along an axis, at most, by the axes of space: larger blocks gain nothing."""
TIMED_SAMPLES = 2**15
TIMED_STEPS = 20
"""Samples of a tile on which an iteration is timed, and its steps, at most."""
MIN_SEAMS, SEAM_SHARE = 2, 1 / 64
"""Least number of blocks whose seams are measured, and their part of all blocks."""
MAX_LOOKS = 256
"""Blocks whose corners are read to choose from, at most."""
MARGIN = 8
"""Pixels beyond the halo that are read around a corner."""


@dataclass(frozen=True)
class BlockOptions:
    """How a picture is cut.

    Attributes:
        max_memory: bytes that a block may take.
        block_size: image pixels of a block along each axis of space; by default as many as fit the memory.
        n_threads: for the arithmetic of one block.
    """

    max_memory: int
    block_size: Size | None = None
    n_threads: int = 1


@dataclass(frozen=True)
class BlockPlan:
    """What was decided before the first block is restored.

    Attributes:
        fingerprint: SHA-256 of the input, the kernel and the settings that the plan was made for.
        core: samples of a block along each axis of the result.
        halo: the halo of a block, and the error at the seams that it leaves.
        choices: what holds for all blocks alike.
        seams: blocks whose seams towards the next ones are measured.
        n_threads: for the arithmetic of one block.
        max_memory: bytes that a block may take.
        block_bytes: bytes that a block takes at most, as estimated.
        seconds_a_sample: that restoring took on a tile.
        doubts: why the tiles are doubted.
        error: predicted on tiles; `None` if it is not predicted.
        notes: on the size of the blocks, a sentence each.
    """

    fingerprint: str
    core: Size
    halo: HaloChoice
    choices: FixedChoices
    seams: tuple[int, ...]
    n_threads: int
    max_memory: int
    block_bytes: int
    seconds_a_sample: float
    doubts: tuple[Doubt, ...] = ()
    error: ErrorSample | None = None
    notes: tuple[str, ...] = ()

    @property
    def seam_notes(self) -> tuple[str, ...]:
        """Note that blocks at the frame may differ by more than blocks should."""
        if self.halo.predicted <= SEAM_TOLERANCE:
            return ()
        part, usual = format_percent(self.halo.predicted), format_percent(SEAM_TOLERANCE)
        advice = f"a larger block_size{' or λ' if self.choices.lams else ''} brings them closer"
        return (f"at the frame blocks may differ by {part} of the range at a seam, instead of {usual}: {advice}",)


def plan_blocks(
    problem: BlockProblem, target: RegionTarget, options: BlockOptions, fingerprint: str, progress: ProgressListener
) -> tuple[BlockPlan, BlockProblem]:
    """Make every decision before the first block; return the plan, and the problem with all choices made.

    Raises:
        UsageError: blocks would differ from the whole by more than seams may.
        TooLargeError: the smallest block does not fit the memory.
    """
    limit_threads(count_cores())
    try:
        layout = Layout(target.axes, target.shape, problem.layout.dimensions)
        # Images that are written together are restored together.
        n_batch = prod(min(target.unit[axis], layout.sizes[axis]) for axis in layout.batch_axes)
        _check_memory(problem, layout, target.unit, n_batch, options)
        sides = tile_sides(problem, options.max_memory, n_batch)
        # Solvers may count on the memory of a block alone: the free memory differs from process to process.
        problem = problem.with_settings(max_memory=options.max_memory)
        progress.begin("restoring preview tiles")
        tiles = find_tiles(problem, sides)
        choices, doubts = fix_choices(problem, tiles, sides, progress)
        settled = choices.settle(problem)
        grid, halo, n_bytes = cut_blocks(settled, layout, target.unit, n_batch, options, tiles, progress)
        progress.begin("choosing the seams to check")
        seams = choose_seams(settled, grid)
        progress.begin("measuring the time to restore a block")
    finally:
        limit_threads(options.n_threads)
    seconds, error = time_restoring(settled, tiles[0], sides), None
    if problem.settings.predict:
        progress.begin("predicting the error of preview tiles")
        error = sample_error(settled, tile_sides(settled, options.max_memory, is_predicted=True))
    plan = BlockPlan(
        fingerprint=fingerprint,
        core=grid.core,
        halo=halo,
        choices=choices,
        seams=seams,
        n_threads=options.n_threads,
        max_memory=options.max_memory,
        block_bytes=n_bytes,
        seconds_a_sample=seconds,
        doubts=doubts,
        error=error,
        notes=_size_notes(grid, target, options.block_size),
    )
    return plan, settled


def _size_notes(grid: BlockGrid, target: RegionTarget, asked: Size | None) -> tuple[str, ...]:
    """Note that blocks have another size than requested, because they write whole tiles or chunks of their file."""
    core, unit = (grid.along_space(tuple(map(min, sizes, target.shape))) for sizes in (grid.core, target.unit))
    if asked is None or max(unit) == 1 or core == tuple(map(min, asked, grid.along_space(target.shape))):
        return ()
    return (
        f"blocks have {format_size(core)} samples instead of the {format_size(asked)} of block_size, because "
        f"'{target.path.name}' is written in whole tiles or chunks of {format_size(unit)}, by equal blocks",
    )


def _check_memory(problem: BlockProblem, layout: Layout, unit: Size, n_batch: int, options: BlockOptions) -> None:
    """Refuse by `TooLargeError` a memory that does not hold the smallest block, before any tile is restored."""
    none = (0,) * len(problem.cuts)
    core = choose_core(layout, unit, options.block_size or none)
    size, taps = BlockGrid(layout, problem.cuts, core, none, none).largest_data, problem.canonical.size
    of_tile = block_bytes(problem, tuple(min(n, 2 * k) for n, k in zip(problem.data_size, taps, strict=True)), n_batch)
    needed = max(of_tile / SHARE, SHARE * block_bytes(problem, size, n_batch))
    if needed > options.max_memory:
        raise TooLargeError(
            f"even the smallest block of '{problem.source.path}' takes {format_memory(round(needed))}, more than the "
            f"{format_memory(options.max_memory)} that max_memory allows {COUNTED}; use more memory, smaller blocks, "
            "or a file of smaller tiles or chunks."
        )


def cut_blocks(
    problem: BlockProblem,
    layout: Layout,
    unit: Size,
    n_batch: int,
    options: BlockOptions,
    tiles: Sequence[PreviewTile],
    progress: ProgressListener,
) -> tuple[BlockGrid, HaloChoice, int]:
    """Measure the halo, and lay out the largest blocks that fit the memory with it: blocks, halo, and bytes of a block.

    The result has the `layout` and is written in whole units; `n_batch` images are restored together.

    Raises:
        UsageError: the estimate depends on data further away than a block can hold.
        TooLargeError: the smallest block does not fit the memory.
    """
    max_samples = largest_samples(problem, options.max_memory, n_batch)
    is_cut = (False,) * len(problem.cuts)
    while True:  # a halo can make blocks too large for an axis that was whole without it
        halo = choose_halo(problem, tiles, is_cut, max_samples, progress, _advise(problem, options))
        if problem.settings.predict:  # the error depends on the detail around each pixel, which a block has to know
            halo = halo.widened(tuple(DETAIL_REACH if is_one else 0 for is_one in is_cut))
        largest = list(_largest_core(problem, max_samples, halo.at_frame, options))
        while True:
            grid = BlockGrid(layout, problem.cuts, choose_core(layout, unit, largest), halo.halo, halo.at_frame)
            n_bytes = block_bytes(problem, grid.largest_data, n_batch)
            if SHARE * n_bytes <= options.max_memory:
                break
            # Large units make a block larger than wanted along their axis, so it has to be smaller along others.
            if options.block_size is not None or not _shorten(largest, grid, unit):
                raise _too_large(grid, n_bytes, options)
        if all(was or not is_one for was, is_one in zip(is_cut, grid.is_cut, strict=True)):
            return grid, halo, n_bytes
        is_cut = tuple(was or is_one for was, is_one in zip(is_cut, grid.is_cut, strict=True))


def _advise(problem: BlockProblem, options: BlockOptions) -> str:
    """Name a setting under which the estimate depends on nearer data, and the memory of the whole."""
    settings, whole = problem.resolved, advise_whole(problem, options.max_memory, options.block_size)
    if settings.has_lambda:
        return f"use a larger lam, or {whole}"
    if settings.objective == "richardson-lucy":
        return f"use fewer iterations, or {whole}"
    return whole


def _shorten(largest: list[int], grid: BlockGrid, unit: Size) -> bool:
    """Shorten blocks by one unit along the axis of space with the most units; return whether that was possible."""
    cores, units = grid.along_space(grid.core), grid.along_space(unit)
    longest = max(range(len(cores)), key=lambda axis: cores[axis] / units[axis])
    left = cores[longest] - units[longest]
    if left > 0:
        largest[longest] = left
    return left > 0


def _largest_core(problem: BlockProblem, max_samples: int, halo: Size, options: BlockOptions) -> Sequence[int]:
    """Return the largest size of a block in image pixels, without its halo and without the data that make FFTs fast."""
    if options.block_size is not None:
        return options.block_size
    most, core = MAX_SIDES[len(problem.data_size)], []
    sides = cube_sides(tuple(min(n, most) for n in problem.data_size), max_samples)
    for side, margin, cut in zip(sides, halo, problem.cuts, strict=True):
        reach, n_data = cut.n_taps - 1, side
        while n_data > 1 and next_fast_size(n_data + reach) > side + reach:
            n_data -= 1
        core.append(cut.n_image if side >= cut.n_data else max(n_data - 2 * margin, 1))
    return core


def _too_large(grid: BlockGrid, n_bytes: int, options: BlockOptions) -> TooLargeError:
    """Say that the smallest blocks do not fit the memory."""
    halo = f" with a halo of {format_size(grid.halo_at_frame)}" if any(grid.halo_at_frame) else ""
    return TooLargeError(
        f"a block of {format_size(grid.core)} samples{halo} takes about {format_memory(n_bytes)}, more than the "
        f"{format_memory(options.max_memory)} that max_memory allows {COUNTED}; use more memory, smaller blocks, or a "
        "file of smaller tiles or chunks."
    )


def choose_seams(problem: BlockProblem, grid: BlockGrid) -> tuple[int, ...]:
    """Choose the numbers of the blocks whose seams are measured: where the data vary most, and one at the frame."""
    n_blocks = grid.n_blocks
    # Spread evenly, whatever the number of blocks in a row.
    spread = {int(GOLDEN_SECTION * k % 1 * n_blocks) for k in range(MAX_LOOKS)}
    found: list[tuple[float, int, bool]] = []
    for number in spread if n_blocks > MAX_LOOKS else range(n_blocks):
        block = grid.block(number)
        corner = corner_of(block, problem.image_size)
        if any(place is not None for place in corner):
            data = [
                read if place is None else cut.data_around((place, place), halo + MARGIN)
                for cut, read, place, halo in zip(problem.cuts, block.data, corner, grid.halo, strict=True)
            ]
            contrast = contrast_of(problem.read(block.batch, data).double(), problem.white)
            found.append((contrast, number, None in corner))
    found.sort(reverse=True)
    n_chosen = max(MIN_SEAMS, round(SEAM_SHARE * n_blocks))
    at_frame = [one for one in found if one[-1]][:1]
    chosen = [*found[:n_chosen], *at_frame]
    return tuple(dict.fromkeys(number for _, number, _ in chosen))


def corner_of(block: Block, image_size: Sequence[int]) -> tuple[int | None, ...]:
    """Return the image pixel at which a block meets the next one along each axis of space; `None` at the frame.

    A block that begins at the frame is measured only at the seams that run into the frame, if it has any, so that
    pixels on the edge of the frame are compared too.
    """
    corner = tuple(stop if stop < n else None for (_, stop), n in zip(block.core, image_size, strict=True))
    inside = tuple(place if start > 0 else None for place, (start, _) in zip(corner, block.core, strict=True))
    return inside if any(place is not None for place in inside) else corner


def time_restoring(problem: BlockProblem, tile: PreviewTile, sides: Size) -> float:
    """Measure the seconds per sample of restoring, without building the inverse, which few blocks do."""
    settings = problem.resolved
    is_linear, n_steps = settings.is_linear, settings.iterations or 1
    n_timed = min(n_steps, TIMED_STEPS)
    if settings.iterations is not None:
        problem = problem.with_settings(iterations=n_timed)
    data = tile.data(sides if is_linear else cube_sides(sides, TIMED_SAMPLES), problem.data_size)
    values, pipeline = problem.read(tile.batch, data), problem.pipeline()
    if is_linear:
        problem.restore(values, data, pipeline)
    started = time.perf_counter()
    problem.restore(values, data, pipeline)
    return (time.perf_counter() - started) / prod(values.shape) * n_steps / n_timed


def fingerprint_of(problem: BlockProblem, target: RegionTarget, options: BlockOptions, extras: BlockExtras) -> str:
    """Hash all that decides what is written.

    Tensors are rounded to single precision: threads that share a sum change the last digits of a computed kernel.
    """
    curve = problem.resolution.tone_curve
    tensors = {"kernel": problem.kernel, "bias": problem.bias, "light": None if curve is None else curve.light}
    settled = {
        "version": package_version("deconv-cli"),
        "source": problem.source.fingerprint(),
        "axes": problem.layout.axes,
        "tensors": {name: None if t is None else [list(t.shape), t.float().tolist()] for name, t in tensors.items()},
        "settings": repr(problem.settings.changed),
        "resolved": repr(problem.resolved.changed),
        "target": [str(target.path), list(target.shape), target.dtype, target.axes, list(target.unit)],
        "block_size": options.block_size,
        "extras": [
            file and [str(file.path), list(file.shape), file.axes, list(file.unit)]
            for file in (extras.error_map, extras.trust_mask)
        ],
    }
    return hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()
