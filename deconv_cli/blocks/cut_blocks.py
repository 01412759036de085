"""How a picture is cut: as few and as large blocks as the memory allows, with the halo that each one needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from deconv_cli.blocks.block_grid import BlockGrid, core_of
from deconv_cli.blocks.block_memory import SHARE, block_bytes, largest_samples
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.halo_depth import HaloChoice, choose_halo
from deconv_cli.blocks.sample_windows import SampleWindow
from deconv_cli.diagnostics.predicted_error import DETAIL_REACH
from deconv_cli.errors import TooLargeError
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions import RegionTarget, cube_sides
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.vocabulary import Size, format_memory, format_size
from deconv_cli.workflows.progress_listener import ProgressListener

MAX_SIDES = {1: 2**20, 2: 4096, 3: 512}
"""Samples of a block and its halo along an axis, at most, by the axes of space: larger ones gain nothing."""


@dataclass(frozen=True)
class BlockOptions:
    """How a picture is to be cut.

    Attributes:
        max_memory: bytes that a block may take.
        block_size: image pixels of a block along each axis of space; `None` for what the memory holds.
        n_threads: for the arithmetic of one block.
    """

    max_memory: int
    block_size: Size | None = None
    n_threads: int = 1


@dataclass(frozen=True)
class BlockCut:
    """How a picture is cut.

    Attributes:
        grid: all blocks.
        halo: what surrounds a block, and what it leaves at the seams.
        n_bytes: that a block takes at most, as estimated.
    """

    grid: BlockGrid
    halo: HaloChoice
    n_bytes: int


def cut_blocks(
    problem: BlockProblem,
    target: RegionTarget,
    options: BlockOptions,
    windows: Sequence[SampleWindow],
    progress: ProgressListener,
    is_trial: bool = False,
) -> BlockCut:
    """Measure the halo, and lay out blocks that fit the memory with it.

    Args:
        problem: what is restored, with nothing left open.
        target: the result, which tells what is written together.
        options: how it is to be cut.
        windows: pieces of the picture, those with the most contrast first.
        progress: follows the measurement.
        is_trial: whether the piece with the most contrast tells enough.

    Raises:
        BlocksDisagreeError: what the estimate depends on reaches further than a block can hold.
        TooLargeError: the smallest block does not fit the memory.
    """
    layout = Layout(target.axes, target.shape, problem.layout.dimensions)
    n_batch = batch_unit(layout, target.unit)
    max_samples = largest_samples(problem, options.max_memory, n_batch)
    is_cut = (False,) * len(problem.cuts)
    while True:  # a halo can make blocks too large for an axis that was whole without it
        halo = choose_halo(
            problem, windows, is_cut=is_cut, max_samples=max_samples, progress=progress, is_trial=is_trial
        )
        if problem.settings.predict:  # the error follows the detail around each pixel, which a block has to know
            halo = halo.widened(tuple(DETAIL_REACH if is_one else 0 for is_one in is_cut))
        largest = _largest_core(problem, max_samples, halo.at_frame, options)
        found = fit_blocks(problem, target, largest, halo, options)
        if all(was or not is_one for was, is_one in zip(is_cut, found.grid.is_cut, strict=True)):
            return found
        is_cut = tuple(was or is_one for was, is_one in zip(is_cut, found.grid.is_cut, strict=True))


def fit_blocks(
    problem: BlockProblem, target: RegionTarget, largest: Sequence[int], halo: HaloChoice, options: BlockOptions
) -> BlockCut:
    """Lay out blocks of a given size, or smaller ones that fit the memory; `TooLargeError` if none do."""
    layout = Layout(target.axes, target.shape, problem.layout.dimensions)
    largest, n_batch = list(largest), batch_unit(layout, target.unit)
    while True:
        grid = BlockGrid(layout, problem.cuts, core_of(layout, target.unit, largest), halo.halo, halo.at_frame)
        n_bytes = block_bytes(problem, grid.largest_data, n_batch)
        if SHARE * n_bytes <= options.max_memory:
            return BlockCut(grid, halo, n_bytes)
        # A block is larger than wanted along an axis whose units are, and so has to be smaller along others.
        if options.block_size is not None or not _shorten(largest, grid, target.unit):
            raise _too_large(grid, n_bytes, options)


def _shorten(largest: list[int], grid: BlockGrid, unit: Size) -> bool:
    """Take a unit from the axis of space along which blocks have most; tell whether there is one to take."""
    axes = [grid.layout.axes.index(letter) for letter in grid.layout.space]
    longest = max(range(len(axes)), key=lambda i: grid.core[axes[i]] / unit[axes[i]])
    left = grid.core[axes[longest]] - unit[axes[longest]]
    if left <= 0:
        return False
    largest[longest] = left
    return True


def batch_unit(layout: Layout, unit: Size) -> int:
    """Count the images that are written together, and so restored at once."""
    return prod(min(unit[axis], layout.sizes[axis]) for axis in layout.batch_axes)


def _largest_core(problem: BlockProblem, max_samples: int, halo: Size, options: BlockOptions) -> Sequence[int]:
    """Give the image pixels of a block, at most: without its halo, and without what is read for a fast FFT."""
    if options.block_size is not None:
        return options.block_size
    size, core = problem.data_size, []
    sides = cube_sides(tuple(min(n, MAX_SIDES[len(size)]) for n in size), max_samples)
    for side, h, cut in zip(sides, halo, problem.cuts, strict=True):
        reach = cut.n_taps - 1
        fast = side
        while fast > 1 and next_fast_size(fast + reach) > side + reach:
            fast -= 1
        core.append(cut.n_image if side >= cut.n_data else max(fast - 2 * h, 1))
    return core


def _too_large(grid: BlockGrid, n_bytes: int, options: BlockOptions) -> TooLargeError:
    """Say that the smallest blocks do not fit the memory."""
    return TooLargeError(
        f"a block of {format_size(grid.core)} samples with a halo of {format_size(grid.halo_at_frame)} takes "
        f"about {format_memory(n_bytes)}, more than the {format_memory(options.max_memory)} that max_memory "
        "allows; use more memory, smaller blocks, or a file of smaller tiles or chunks."
    )
