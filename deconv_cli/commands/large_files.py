"""Large inputs: which of many are, and what is known of one before its samples are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.errors import DeconvError

if TYPE_CHECKING:
    from deconv_cli.blocks.block_problem import BlockProblem
    from deconv_cli.commands.loaded_kernel import LoadedKernel
    from deconv_cli.io import ImageFile
    from deconv_cli.io.regions import RegionSource

LARGE_FILE_BYTES = 64 * 2**20
"""Inputs from this size on are done by themselves, so that several of them are never in memory at once."""


@dataclass(frozen=True, eq=False)
class LargeInput:
    """An input of which no more than a corner was read.

    Attributes:
        source: the file.
        corner: the corner, with what the file says of itself.
        loaded: the kernel.
        problem: what is to be restored.
        notes: what the user should know of the settings, a sentence each.
    """

    source: RegionSource
    corner: ImageFile
    loaded: LoadedKernel
    problem: BlockProblem
    notes: tuple[str, ...]


def is_large(path: Path) -> bool:
    """Tell by its size whether an input is large; of a folder that is one file, and of an address, by its header."""
    from deconv_cli.io.files import address_of

    try:
        if address_of(path) is not None or path.is_dir():
            return _bytes_of_samples(path) >= LARGE_FILE_BYTES
        return path.stat().st_size >= LARGE_FILE_BYTES
    except OSError:
        return False


@lru_cache(maxsize=16)
def _bytes_of_samples(path: Path) -> int:
    from deconv_cli.io.regions import open_regions

    try:
        return open_regions(path).n_bytes
    except DeconvError:  # as reading it will say
        return 0
