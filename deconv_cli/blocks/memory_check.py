"""How much memory a block takes, and how large a block the memory allows."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import psutil

from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.geometry import Geometry
from deconv_cli.parts import PRIORS
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.choice import choose_method, find_solver
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solver import Cost
from deconv_cli.vocabulary import Size, format_memory

N_COPIES = 4
"""Arrays of the size of the data for reading, cropping and writing a block, beside the solver's."""
N_COPIES_TESTED = 28
"""The same if the residual is tested: noise and residual are transformed in double precision."""
N_COPIES_OF_BOUNDS = {1: 32, 2: 32, 3: 72}
"""Further arrays of an iteration with saturated samples as bounds, most in double precision, by the axes of space."""
SHARE = 0.9
"""Part of the allowed memory that is planned with. Blocks of 1000² and 80 × 120² took 0.5 to 0.86 of the estimate."""
FREE_SHARE = 0.5
"""Part of the free memory that blocks take by default."""
MAX_BYTES_A_SAMPLE = 2**10
"""No solver takes more, so a small picture is recognized without asking any."""


def default_memory() -> int:
    """Return the bytes that blocks take by default."""
    return int(FREE_SHARE * psutil.virtual_memory().available)


def block_bytes(problem: BlockProblem, data_size: Size, n_batch: int = 1, *, is_tested: bool = False) -> int:
    """Estimate the peak of memory of restoring a part of the data, of `n_batch` images together.

    The residual is tested too for preview tiles and for a whole picture.
    """
    kernel = Kernel.of_any(problem.kernel, problem.dtype, dimensions=problem.layout.dimensions)
    n_channels = max(problem.layout.n_channels, problem.n_channels)
    bytes_of_channel = problem.dtype.itemsize * n_batch * prod(data_size)
    copies = (N_COPIES_TESTED if is_tested else N_COPIES) * n_channels * bytes_of_channel
    n_bounded = N_COPIES_OF_BOUNDS[len(data_size)] if problem.resolution.has_bounds else 0
    if problem.resolution.is_per_channel or problem.resolution.lams:
        one = kernel.of_channel(0) if kernel.is_per_channel else kernel
        cost = _cost(one, data_size, problem.resolved)
        one_by_one = n_channels * cost.n_bytes(0) + cost.n_bytes(n_batch) - cost.n_bytes(0)
        return copies + one_by_one + n_bounded * bytes_of_channel
    n_images = n_batch * (problem.layout.n_channels if kernel.shared else 1)
    copies += n_bounded * n_channels * bytes_of_channel
    return copies + _cost(kernel, data_size, problem.resolved).n_bytes(n_images)


def _cost(kernel: Kernel, data_size: Size, settings: ResolvedSettings) -> Cost:
    """Estimate the cost of the solver for a block whose sides are all cuts."""
    geometry = Geometry.of_output(data_size, kernel.size, "valid")
    if settings.has_lambda:
        operator = kernel.detached().convolution(geometry, "unknown")
        penalty = spaced_penalty(settings.penalty, settings.spacing)
        problem = TikhonovProblem(operator, settings.lam, None, penalty, settings.rcond)
        return find_solver(choose_method(problem, settings.method, settings.max_memory).method).cost(problem)
    cut = replace(settings, padding="valid", boundary="unknown", max_memory=2**62)
    estimator: Estimator = PRIORS[settings.objective].build(kernel, geometry.image_size, cut, 1.0)
    return estimator.cost


def largest_samples(problem: BlockProblem, budget: int, n_batch: int = 1, *, is_tested: bool = False) -> int:
    """Find how many samples of data fit a budget in bytes, in a part of nearly equal sides."""
    size = problem.data_size
    probe = tuple(min(n, 2 ** (18 // len(size))) for n in size)
    per_sample = block_bytes(problem, probe, n_batch, is_tested=is_tested) / prod(probe)
    return int(SHARE * budget / per_sample)


def is_small(shape: Size, budget: int) -> bool:
    """Return whether an input of this stored shape certainly fits the memory."""
    return MAX_BYTES_A_SAMPLE * prod(shape) <= budget


def _bytes_of_whole(problem: BlockProblem) -> float:
    return block_bytes(problem, problem.data_size, problem.layout.n_batch, is_tested=True) / SHARE


def whole_fits(problem: BlockProblem, budget: int) -> bool:
    """Return whether the whole picture fits the memory that its restoration may take."""
    return is_small(problem.source.shape, budget) or _bytes_of_whole(problem) <= budget


def advise_whole(problem: BlockProblem, max_memory: int, block_size: Size | None = None) -> str:
    """Advise to restore a picture as a whole, and name the options that have to change."""
    n_bytes = 1.01 * _bytes_of_whole(problem)  # rounded when printed
    needs = [] if block_size is None else ["without block_size"]
    if n_bytes > max_memory:
        needs.append(f"with a max_memory of {format_memory(n_bytes)}")
    return "restore it as a whole" + (", " + " and ".join(needs) if needs else "")
