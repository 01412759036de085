"""Whether a picture is restored as a whole or in blocks: by what its header says."""

from __future__ import annotations

from math import prod

from deconv_cli.blocks.block_memory import SHARE, block_bytes
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.vocabulary import Size

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
