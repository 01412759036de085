"""How large a block can be within the memory that it may take."""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod

import psutil
import torch

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
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.arithmetic import pick_dtype

N_COPIES = 4
"""Arrays of the size of the data that reading, cropping and writing a block hold beside a solver."""
N_COPIES_TESTED = 28
"""The same where the residual is tested, as of a whole: noise and residual are transformed in double precision."""
N_COPIES_OF_BOUNDS = 32
"""The same that an iteration holds where full samples are bounds, most of them in double precision."""
SHARE = 0.9
"""Of what may be taken, the part that is planned with.

Of what was estimated for blocks of 1000² and 80 × 120², of all objectives, half to 0.86 was measured to be taken.
"""
FREE_SHARE = 0.5
"""Of the memory that is free, what blocks take where nobody says how much."""


def default_memory() -> int:
    """Give the bytes that blocks take where nobody says how much."""
    return int(FREE_SHARE * psutil.virtual_memory().available)


def arithmetic_dtype(problem: BlockProblem) -> torch.dtype:
    """Give the precision that blocks are restored in."""
    stored = torch.float64 if problem.source.dtype == "float64" else torch.float32
    return pick_dtype(problem.settings.dtype, torch.empty(0, dtype=stored), torch.device(problem.device))


def block_bytes(problem: BlockProblem, data_size: Size, n_batch: int = 1, *, is_tested: bool = False) -> int:
    """Estimate the peak of memory of restoring a part of the data.

    Args:
        problem: what is restored.
        data_size: samples along each axis of space.
        n_batch: images that are restored at once.
        is_tested: whether the residual is tested too, as of pieces that are chosen from and of a whole.
    """
    dtype = arithmetic_dtype(problem)
    kernel = Kernel.of_any(problem.kernel, dtype, dimensions=problem.layout.dimensions)
    n_channels = max(problem.layout.n_channels, problem.n_channels)
    n_copies = N_COPIES_TESTED if is_tested else N_COPIES
    of_one = dtype.itemsize * n_batch * math.prod(data_size)
    copies = n_copies * n_channels * of_one
    n_bounded = N_COPIES_OF_BOUNDS if problem.resolution.has_bounds else 0
    if problem.resolution.is_per_channel or problem.resolution.lams:
        one = kernel.of_channel(0) if kernel.is_per_channel else kernel
        cost = _cost(one, data_size, problem.resolution.settings)
        one_by_one = n_channels * cost.n_bytes(0) + cost.n_bytes(n_batch) - cost.n_bytes(0)
        return copies + one_by_one + n_bounded * of_one
    n_images = n_batch * (problem.layout.n_channels if kernel.shared else 1)
    copies += n_bounded * n_channels * of_one
    return copies + _cost(kernel, data_size, problem.resolution.settings).n_bytes(n_images)


def _cost(kernel: Kernel, data_size: Size, settings: ResolvedSettings) -> Cost:
    """Estimate what the solver takes that will run, for a block that is cut on all sides."""
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
    """Find how many samples of data fit a budget, for a part that is as near to a cube as the frame lets it be.

    See `block_bytes`.
    """
    size = problem.data_size
    probe = tuple(min(n, 2 ** (18 // len(size))) for n in size)
    per_sample = block_bytes(problem, probe, n_batch, is_tested=is_tested) / math.prod(probe)
    return int(SHARE * budget / per_sample)


MAX_BYTES_A_SAMPLE = 2**10
"""No solver takes more; so small pictures are recognized without asking any."""


def is_small(shape: Size, budget: int) -> bool:
    """Tell at once of a small input, by its stored shape, that it fits the memory."""
    return MAX_BYTES_A_SAMPLE * prod(shape) <= budget


def whole_fits(problem: BlockProblem, budget: int) -> bool:
    """Tell whether a picture fits the memory that its restoration may take, all of it at once."""
    if is_small(problem.source.shape, budget):
        return True
    n_batch = problem.layout.n_batch
    return block_bytes(problem, problem.data_size, n_batch, is_tested=True) <= SHARE * budget
