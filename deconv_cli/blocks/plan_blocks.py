"""Planning a run over blocks: what is chosen once, how far a cut reaches, and how large a block can be."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from statistics import median

from deconv_cli.blocks.block_memory import SHARE, block_bytes, largest_samples
from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_problem import BlockProblem, limit_threads
from deconv_cli.blocks.cut_blocks import BlockCut, BlockOptions, batch_unit, cut_blocks
from deconv_cli.blocks.fixed_choices import FixedChoices, fix_choices
from deconv_cli.blocks.halo_depth import N_FITTED, SEAM_TOLERANCE, BlocksDisagreeError
from deconv_cli.blocks.less_influence import advise
from deconv_cli.blocks.sample_windows import (
    MAX_SAMPLES,
    SampleWindow,
    covering_windows,
    find_windows,
    map_pieces,
    workers_for,
)
from deconv_cli.blocks.seam_places import choose_seams
from deconv_cli.errors import TooLargeError, UsageError
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions import RegionTarget, cube_sides
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import Size, format_memory, package_version
from deconv_cli.workflows.progress_listener import ProgressListener, StepOf

TIMED_SAMPLES = 2**15
TIMED_STEPS = 20
"""Samples of a piece on which an iteration is timed, and steps, at most."""


def plan_blocks(
    problem: BlockProblem, target: RegionTarget, options: BlockOptions, progress: ProgressListener | None = None
) -> tuple[BlockPlan, BlockProblem]:
    """Decide all that is decided before the first block is read.

    Args:
        problem: what is restored.
        target: the result, which tells what is written together.
        options: how it is to be cut.
        progress: is notified what is looked at.

    Returns:
        The plan, and the problem with nothing left open.

    Raises:
        UsageError: blocks would differ from the whole by more than seams may; says what would help.
        TooLargeError: the smallest block does not fit the memory.
    """
    progress = progress or ProgressListener()
    limit_threads(options.n_threads)
    n_batch = batch_unit(Layout(target.axes, target.shape, problem.layout.dimensions), target.unit)
    _check_least(problem, options, n_batch)
    max_samples = largest_samples(problem, options.max_memory, n_batch, is_tested=True)
    fingerprint, problem = fingerprint_of(problem, target, options), with_memory(problem, options.max_memory)
    # Choosing λ wants more memory than restoring, and a solver for the whole of a piece more than for a part.
    piece = cube_sides(problem.data_size, max(min(MAX_SAMPLES, max_samples // 2), 1))
    progress.begin("looking at pieces of the picture")
    windows = find_windows(problem, piece)

    def cut_under(choices: FixedChoices, progress: ProgressListener, *, is_trial: bool = False) -> BlockCut:
        return cut_blocks(choices.settle(problem), target, options, windows, progress, is_trial)

    def agree(choices: FixedChoices, is_trial: bool) -> bool:
        listener = StepOf("what would let blocks agree", progress)
        if not is_trial:
            choices = choose_steps(problem, choices, windows, listener)
        try:
            cut = cut_under(choices, listener, is_trial=is_trial)
        except (BlocksDisagreeError, TooLargeError):
            return False
        return cut.halo.predicted <= SEAM_TOLERANCE

    choices, doubts = fix_choices(problem, windows, piece, progress)
    choices = choose_steps(problem, choices, windows, progress)
    try:
        cut = cut_under(choices, progress)
    except BlocksDisagreeError as error:
        raise UsageError(f"{error}; {advise(choices.settle(problem), choices, options, agree)}.") from error
    settled = choices.settle(problem)
    progress.begin("choosing the seams that are checked")
    seams = choose_seams(settled, cut.grid)
    progress.begin("measuring the time that restoring takes")
    plan = BlockPlan(
        fingerprint,
        cut.grid.core,
        cut.halo,
        choices,
        seams,
        options.n_threads,
        options.max_memory,
        cut.n_bytes,
        time_restoring(settled, windows[0], piece),
        doubts,
    )
    return plan, settled


def time_restoring(problem: BlockProblem, window: SampleWindow, sides: Size) -> float:
    """Measure the seconds that a sample takes: once the inverse is built, which iterations take long beside."""
    settings = problem.resolution.settings
    is_linear, n_steps = settings.is_linear, settings.iterations or 1
    n_timed = min(n_steps, TIMED_STEPS)
    if settings.iterations is not None:
        fewer = replace(settings, iterations=n_timed)
        problem = replace(problem, resolution=replace(problem.resolution, settings=fewer))
    data = window.data(sides if is_linear else cube_sides(sides, TIMED_SAMPLES), problem.data_size)
    values, pipeline = problem.read(window.batch, data), problem.pipeline()
    if is_linear:
        problem.restore(values, data, pipeline)
    started = time.perf_counter()
    problem.restore(values, data, pipeline)
    return (time.perf_counter() - started) / prod(values.shape) * n_steps / n_timed


def with_memory(problem: BlockProblem, max_memory: int) -> BlockProblem:
    """Let solvers count on the memory of a block alone: what is free differs from process to process."""
    settings = replace(problem.resolution.settings, max_memory=max_memory)
    return replace(problem, resolution=replace(problem.resolution, settings=settings))


def fingerprint_of(problem: BlockProblem, target: RegionTarget, options: BlockOptions) -> str:
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
        "settings": repr(problem.settings),
        "resolved": repr(problem.resolution.settings),
        "target": [str(target.path), list(target.shape), target.dtype, target.axes, list(target.unit)],
        "block_size": options.block_size,
    }
    return hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()


def _check_least(problem: BlockProblem, options: BlockOptions, n_batch: int) -> None:
    """Refuse by `TooLargeError` a memory that does not hold the smallest part in which a cut can be felt."""
    taps = problem.canonical.size
    least = block_bytes(problem, tuple(min(n, 2 * k) for n, k in zip(problem.data_size, taps, strict=True)), n_batch)
    if SHARE * options.max_memory < least:
        raise TooLargeError(
            f"even the smallest block of '{problem.source.path}' takes {format_memory(round(least / SHARE))}, more "
            f"than the {format_memory(options.max_memory)} that max_memory allows; use more memory."
        )


MAX_PIECE_SAMPLES = 2**15
"""Samples of a piece, at most: how fast an iteration is depends little on its size."""
RHO_STEPS = 80
"""Steps after which ρ is taken as it is: it was adapted four times by then, and will hardly change any more."""


def choose_steps(
    problem: BlockProblem, choices: FixedChoices, windows: Sequence[SampleWindow], progress: ProgressListener
) -> FixedChoices:
    """Choose ρ, and how many steps at it reach the tolerance on all of a few pieces; for other solvers nothing.

    An iteration that ends at a tolerance ends elsewhere in each block, and blur leaves the objective so flat that
    pixels may then be off by more than seams may be. A step at a given ρ is local: after so many of them two blocks
    agree where they know the same data, however far the minimum is.

    Args:
        problem: what is restored, as it was laid out.
        choices: what was chosen so far.
        windows: pieces of the picture, those with the most contrast first.
        progress: is notified which piece is solved.
    """
    if choices.rho is None:
        return choices
    given = problem.settings

    def solve_pieces(choices: FixedChoices, what: str, max_iterations: int | None = None) -> list[Solution]:
        settled = _within(choices.settle(problem), max_iterations)
        size, pipeline = problem.data_size, settled.pipeline()
        sides = cube_sides(size, MAX_PIECE_SAMPLES)

        def solve(window: SampleWindow, progress: ProgressListener) -> Solution:
            data = window.data(sides, size)
            return settled.restore(settled.read(window.batch, data), data, pipeline, progress).solution

        pieces = covering_windows(problem, windows, sides, N_FITTED)
        return map_pieces(solve, pieces, f"{what} of all blocks", progress, workers_for(settled, sides))

    if given.rho is None:
        n_adapted = RHO_STEPS if given.iterations is None else 1  # a given number of steps adapts nothing
        adapted = solve_pieces(replace(choices, rho=None), "ρ", n_adapted)
        choices = replace(choices, rho=median(solution.rho for solution in adapted if solution.rho is not None))
    if given.iterations is None:
        solved = solve_pieces(replace(choices, iterations=None), "the steps")
        choices = replace(choices, iterations=max(solution.n_iterations for solution in solved))
    return choices


def _within(problem: BlockProblem, max_iterations: int | None) -> BlockProblem:
    """Let iterations that end at a tolerance end after so many steps too."""
    settings = problem.resolution.settings
    if max_iterations is None:
        return problem
    settings = replace(settings, iterations=None, max_iterations=min(max_iterations, settings.max_iterations))
    return replace(problem, resolution=replace(problem.resolution, settings=settings))
