"""How far an iteration must be solved in blocks: until two estimates of the same pixels agree better than seams may.

Whether two blocks agree where they meet depends on what they know of the picture, which is the halo's matter, and on
how far each is solved. A certificate bounds the objective, and says little about the pixel that is furthest off where
blur leaves the objective flat. So it is measured: a piece is solved to one tolerance, and to a tenth of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.fixed_choices import FixedChoices
from deconv_cli.blocks.halo_depth import BlocksDisagreeError, range_of, seam_limit
from deconv_cli.blocks.sample_windows import SampleWindow, cube_sides
from deconv_cli.vocabulary import ArithmeticDType
from deconv_cli.workflows.progress_listener import ProgressListener, StepOf
from deconv_cli.workflows.reconstruction import Reconstruction

SHARE_OF_SEAM = 0.25
"""Of the difference that is allowed at seams, what the solver may make: two blocks make it, and the halo takes more."""
MAX_SAMPLES = 2**14
"""Samples of the piece, at most: what a solver leaves undone is local."""
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7)
"""Those that are tried, and"""
STEP = 10
"""how much finer the estimate is solved that each is held against, in so many times the iterations at most."""


def choose_tolerance(
    problem: BlockProblem, choices: FixedChoices, windows: Sequence[SampleWindow], progress: ProgressListener
) -> FixedChoices:
    """Choose how far blocks are solved, and in which precision, where a prior is minimized by an iteration.

    Args:
        problem: what is restored, as it was laid out.
        choices: what was chosen so far.
        windows: pieces of the picture, those with the most contrast first.
        progress: follows the trials.

    Raises:
        BlocksDisagreeError: the solver does not come near enough to the minimum.
    """
    settings = problem.resolution.settings
    if settings.is_linear or settings.objective == "richardson-lucy":  # exact, and so many steps
        return choices
    progress = StepOf("how far blocks must be solved", progress)
    if problem.settings.dtype is not None or problem.device == "mps":
        return _refine(problem, choices, windows, progress)
    try:
        return _refine(problem, choices, windows, progress)
    except BlocksDisagreeError:
        return _refine(problem, replace(choices, dtype=ArithmeticDType.FLOAT64), windows, progress)


def _refine(
    problem: BlockProblem, choices: FixedChoices, windows: Sequence[SampleWindow], progress: ProgressListener
) -> FixedChoices:
    """Solve a piece to the tolerance that was given, else to ever finer ones, and each time to a tenth of it."""
    window, given = windows[0], problem.settings.tolerance
    data = window.data(cube_sides(problem.data_size, MAX_SAMPLES), problem.data_size)
    values = problem.read(window.batch, data)

    def solve(tolerance: float, n_times: int = 1) -> Reconstruction:
        own = replace(choices, tolerance=tolerance).settle(problem)
        settings = replace(own.resolution.settings, max_iterations=n_times * problem.settings.max_iterations)
        own = replace(own, resolution=replace(own.resolution, settings=settings))
        return own.restore(values, data, own.pipeline(), progress)

    tolerances = TOLERANCES if given is None else (given,)
    coarse = solve(tolerances[0])
    for tolerance in tolerances:
        fine = solve(tolerance / STEP, STEP)
        difference = float((fine.image - coarse.image).abs().max())
        are_solved = coarse.solution.status.is_success and fine.solution.status.is_success
        if are_solved and difference <= SHARE_OF_SEAM * seam_limit(windows):
            return replace(choices, tolerance=tolerance)
        if not are_solved:
            break
        coarse = fine
    raise BlocksDisagreeError(
        f"blocks would not agree where they meet: estimates of one piece that were to be solved to a tolerance of "
        f"{tolerance:.0e} and of {tolerance / STEP:.0e} differ by {difference / range_of(windows):.1g} of "
        f"the range, of which seams may have {seam_limit(windows) / range_of(windows):.1g}"
    )
