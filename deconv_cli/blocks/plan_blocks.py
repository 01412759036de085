"""Planning a run over blocks: what is chosen once, how far a cut reaches, and how large a block can be."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from math import prod

from deconv_cli.blocks.block_grid import BlockGrid, core_of
from deconv_cli.blocks.block_memory import SHARE, block_bytes, largest_samples
from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_problem import BlockProblem, limit_threads
from deconv_cli.blocks.fixed_choices import FixedChoices, fix_choices
from deconv_cli.blocks.halo_depth import choose_halo
from deconv_cli.blocks.sample_windows import MAX_SAMPLES, SampleWindow, cube_sides, find_windows
from deconv_cli.errors import TooLargeError
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.region_target import RegionTarget
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.vocabulary import Size, format_memory

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


def plan_blocks(problem: BlockProblem, target: RegionTarget, options: BlockOptions) -> tuple[BlockPlan, BlockProblem]:
    """Decide all that is decided before the first block is read.

    Args:
        problem: what is restored.
        target: the result, which tells what is written together.
        options: how it is to be cut.

    Returns:
        The plan, and the problem with nothing left open.

    Raises:
        UsageError: what the estimate depends on reaches further than a block can hold.
        TooLargeError: the smallest block does not fit the memory.
    """
    limit_threads(options.n_threads)
    layout = Layout(target.axes, target.shape, problem.layout.dimensions)
    n_batch = _batch_unit(layout, target.unit)
    _check_least(problem, options, n_batch)
    max_samples = largest_samples(problem, options.max_memory, n_batch)
    problem = with_memory(problem, options.max_memory)
    # Choosing λ wants more memory than restoring, and a solver for the whole of a piece more than for a part.
    piece = cube_sides(problem.data_size, max(min(MAX_SAMPLES, max_samples // 2), 1))
    windows = find_windows(problem, piece)
    choices = fix_choices(problem, windows, piece)
    problem = settle(problem, choices)
    sides = _sides(problem, options, max_samples)
    is_cut = [side < n for side, n in zip(sides, problem.data_size, strict=True)]
    halo = choose_halo(problem, windows, is_cut=is_cut, max_samples=max_samples)
    core = core_of(layout, target.unit, _largest_core(problem, sides, halo.halo, options))
    n_bytes = _checked_bytes(problem, layout, core, halo.halo, options, n_batch)
    plan = BlockPlan(
        fingerprint_of(problem, target, options),
        core,
        halo,
        choices,
        options.n_threads,
        options.max_memory,
        n_bytes,
        time_restoring(problem, windows[0], piece),
    )
    return plan, problem


def time_restoring(problem: BlockProblem, window: SampleWindow, sides: Size) -> float:
    """Measure the seconds that a sample takes, once the inverse is built."""
    data = window.data(sides, problem.data_size)
    values, pipeline = problem.read(window.batch, data), problem.pipeline()
    problem.restore(values, data, pipeline)
    started = time.perf_counter()
    problem.restore(values, data, pipeline)
    return (time.perf_counter() - started) / prod(values.shape)


def with_memory(problem: BlockProblem, max_memory: int) -> BlockProblem:
    """Let solvers count on the memory of a block alone: what is free differs from process to process."""
    settings = replace(problem.resolution.settings, max_memory=max_memory)
    return replace(problem, resolution=replace(problem.resolution, settings=settings))


def settle(problem: BlockProblem, choices: FixedChoices) -> BlockProblem:
    """Settle what was left open by what was chosen."""
    return replace(problem, resolution=choices.apply(problem.resolution))


def fingerprint_of(problem: BlockProblem, target: RegionTarget, options: BlockOptions) -> str:
    """Hash all that decides what is written."""
    settings = {name: repr(value) for name, value in sorted(vars(problem.settings).items())}
    told = {
        "version": metadata.version("deconv-cli"),
        "source": problem.source.fingerprint(),
        "axes": problem.layout.axes,
        "kernel": hashlib.sha256(problem.kernel.detach().double().numpy().tobytes()).hexdigest(),
        "settings": settings,
        "target": [str(target.path), list(target.shape), target.dtype, target.axes, list(target.unit)],
        "block_size": options.block_size,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _batch_unit(layout: Layout, unit: Size) -> int:
    """Count the images that are written together, and so restored at once."""
    return prod(min(unit[axis], layout.sizes[axis]) for axis in layout.batch_axes)


def _check_least(problem: BlockProblem, options: BlockOptions, n_batch: int) -> None:
    """Refuse by `TooLargeError` a memory that does not hold the smallest part in which a cut can be felt."""
    taps = problem.canonical.size
    least = block_bytes(problem, tuple(min(n, 2 * k) for n, k in zip(problem.data_size, taps, strict=True)), n_batch)
    if SHARE * options.max_memory < least:
        raise TooLargeError(
            f"even the smallest block of '{problem.source.path}' takes {format_memory(round(least / SHARE))}, more "
            f"than the {format_memory(options.max_memory)} that max_memory allows; use more memory."
        )


def _sides(problem: BlockProblem, options: BlockOptions, max_samples: int) -> Size:
    """Give the data samples of a block with its halo along each axis, at most; where it is all, nothing is cut."""
    size = problem.data_size
    if options.block_size is not None:
        return tuple(min(n, side) for n, side in zip(size, options.block_size, strict=True))
    largest = MAX_SIDES[len(size)]
    return cube_sides(tuple(min(n, largest) for n in size), max_samples)


def _largest_core(problem: BlockProblem, sides: Size, halo: Size, options: BlockOptions) -> Sequence[int]:
    """Leave the halo away, and what is read for a fast FFT."""
    if options.block_size is not None:
        return options.block_size
    core = []
    for side, h, cut in zip(sides, halo, problem.cuts, strict=True):
        reach = cut.n_taps - 1
        fast = side
        while fast > 1 and next_fast_size(fast + reach) > side + reach:
            fast -= 1
        core.append(cut.n_image if side >= cut.n_data else max(fast - 2 * h, 1))
    return core


def _checked_bytes(
    problem: BlockProblem, layout: Layout, core: Size, halo: Size, options: BlockOptions, n_batch: int
) -> int:
    """Estimate the memory of the largest block; refuse by `TooLargeError` what does not fit."""
    size = BlockGrid(layout, problem.cuts, core, halo).largest_data
    n_bytes = block_bytes(problem, size, n_batch)
    if SHARE * n_bytes > options.max_memory:
        raise TooLargeError(
            f"a block of {'×'.join(map(str, core))} samples with a halo of {'×'.join(map(str, halo))} takes about "
            f"{format_memory(n_bytes)}, more than the {format_memory(options.max_memory)} that max_memory allows; "
            "use more memory, smaller blocks, or a file of smaller tiles or chunks."
        )
    return n_bytes
