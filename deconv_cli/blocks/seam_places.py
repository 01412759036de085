"""Which seams are measured during a run: those where the data vary most, since there a cut shows most."""

from __future__ import annotations

from collections.abc import Sequence

from deconv_cli.blocks.block_grid import Block, BlockGrid
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.sample_windows import contrast_of
from deconv_cli.diagnostics.boundary_modes import GOLDEN_SECTION

MIN_SEAMS = 2
SEAM_SHARE = 1 / 64
"""Of all blocks, the part whose seams are measured, and how many are at least."""
MAX_LOOKS = 256
"""Blocks whose corners are looked at, at most."""
MARGIN = 8
"""Pixels beyond the halo that are looked at around a corner."""


def corner_of(block: Block, image_size: Sequence[int]) -> tuple[int | None, ...]:
    """Give the image pixel at which a block meets the next one along each axis of space; `None` at the frame.

    Of a block at the beginning of the frame only the seams that run into the frame are measured, if there are any: so
    pixels on the frame's edge are compared too.
    """
    corner = tuple(stop if stop < n else None for (_, stop), n in zip(block.core, image_size, strict=True))
    inside = tuple(place if start > 0 else None for place, (start, _) in zip(corner, block.core, strict=True))
    return inside if any(place is not None for place in inside) else corner


def choose_seams(problem: BlockProblem, grid: BlockGrid) -> tuple[int, ...]:
    """Choose blocks whose seams towards the next ones are measured: those around whose corner the data vary most.

    One of them at least reaches the frame, if any does.

    Args:
        problem: what is restored.
        grid: all blocks.
    """
    n_blocks = grid.n_blocks
    # Spread evenly, whatever the number of blocks in a row.
    spread = (int(GOLDEN_SECTION * k % 1 * n_blocks) for k in range(MAX_LOOKS))
    looked_at = set(spread) if n_blocks > MAX_LOOKS else range(n_blocks)
    found: list[tuple[float, int, bool]] = []
    for number in looked_at:
        block = grid.block(number)
        corner = corner_of(block, problem.image_size)
        if any(place is not None for place in corner):
            found.append((_contrast_around(problem, grid, block, corner), number, None in corner))
    found.sort(reverse=True)
    chosen = [*found[: max(MIN_SEAMS, round(SEAM_SHARE * n_blocks))], *[one for one in found if one[-1]][:1]]
    return tuple(dict.fromkeys(number for _, number, _ in chosen))


def _contrast_around(problem: BlockProblem, grid: BlockGrid, block: Block, corner: Sequence[int | None]) -> float:
    """Measure how much the data vary as far as blocks reach beyond the place where they meet."""
    data = [
        read if place is None else cut.data_around((place, place), halo + MARGIN)
        for cut, read, place, halo in zip(problem.cuts, block.data, corner, grid.halo, strict=True)
    ]
    return contrast_of(problem.read(block.batch, data).double(), problem.white)
