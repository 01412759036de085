"""Large inputs: which inputs are large, and what is known of one before its samples are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.errors import DeconvError

if TYPE_CHECKING:
    from deconv_cli.blocks.block_problem import BlockProblem
    from deconv_cli.commands.loaded_kernel import LoadedKernel
    from deconv_cli.io.image import ImageFile
    from deconv_cli.io.region_arrays import RegionSource

LARGE_FILE_BYTES = 64 * 2**20
"""Inputs from this size on are restored one by one, so that several of them are never in memory at once."""


@dataclass(frozen=True, eq=False)
class LargeInput:
    """An input of which only a corner was read, its kernel, and notes on the settings, a sentence each."""

    source: RegionSource
    corner: ImageFile
    loaded: LoadedKernel
    problem: BlockProblem
    notes: tuple[str, ...]


def is_large(path: Path) -> bool:
    """Return whether an input is large: by its size, or by its header if it is a folder or at an address."""
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
    except DeconvError:  # reading it raises it again
        return 0
