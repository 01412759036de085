"""How many steps of the total variation blocks take, and at which ρ: the same in all, which none decides for itself.

An iteration that ends at a tolerance ends elsewhere in each block, and blur leaves the objective so flat that pixels
may then be off by more than seams may be. A step at a given ρ is local: after so many of them two blocks agree where
they know the same data, however far the minimum is. So the steps are counted on pieces, as those of Richardson–Lucy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.fixed_choices import FixedChoices
from deconv_cli.blocks.halo_depth import N_FITTED
from deconv_cli.blocks.map_pieces import map_pieces, workers_for
from deconv_cli.blocks.sample_windows import SampleWindow, covering_windows
from deconv_cli.io.regions.spread_pieces import cube_sides
from deconv_cli.solvers.solution import Solution
from deconv_cli.workflows.progress_listener import ProgressListener

MAX_SAMPLES = 2**15
"""Samples of a piece, at most: how fast an iteration is depends little on its size."""
RHO_STEPS = 80
"""Steps after which ρ is taken as it is: it was adapted four times by then, and will hardly change any more."""


def choose_steps(
    problem: BlockProblem, choices: FixedChoices, windows: Sequence[SampleWindow], progress: ProgressListener
) -> FixedChoices:
    """Choose ρ, and how many steps at it reach the tolerance on all of a few pieces; for other solvers nothing.

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
        sides = cube_sides(size, MAX_SAMPLES)

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
