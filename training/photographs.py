"""The photographs that the denoiser learns from: free wallpapers out of Debian's packages.

`photographs.csv` names each with its author and license. Each is shrunk until a pixel averages several of the camera's,
so that neither its noise nor its compression is left.
"""

from __future__ import annotations

import csv
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

TABLE = Path(__file__).with_name("photographs.csv")
SHRINKING = (2, 3, 5)
"""Each photograph is taken at these fractions of its size."""
LARGEST_SIDE = 4200
"""Photographs with a longer side are shrunk to it first: they would weigh more than the others."""


@dataclass(frozen=True)
class Photograph:
    """One photograph of the table."""

    package: str
    file: str
    author: str
    license: str


def photographs() -> list[Photograph]:
    """Read the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [Photograph(**row) for row in csv.DictReader(file)]


def unpack_package(package: str, folder: Path) -> Path:
    """Download one of Debian's packages and unpack it, unless that was done; nothing is installed.

    Args:
        package: its name.
        folder: where to.

    Returns:
        The folder that holds its files under their names.
    """
    root, archives = folder / "unpacked", folder / "archives"
    if not list(archives.glob(f"{package}_*.deb")):
        archives.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "--quiet", package], cwd=archives, check=True)  # noqa: S603, S607
        for archive in archives.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg-deb", "--extract", str(archive), str(root)], check=True)  # noqa: S603, S607
    return root


def shrunk(folder: Path) -> list[np.ndarray]:
    """Read all photographs at all their sizes.

    Args:
        folder: where they are unpacked, and the shrunken ones are kept.

    Returns:
        Stored values, uint8, shape `(H, W, 3)` each.
    """
    kept = folder / "shrunk.npz"
    if not kept.exists():
        sizes = [size for p in photographs() for size in _sizes(unpack_package(p.package, folder) / p.file)]
        np.savez(kept, *sizes)
    with np.load(kept) as arrays:
        return [arrays[name] for name in arrays.files]


def _sizes(path: Path) -> list[np.ndarray]:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    start = max(1.0, max(picture.size) / LARGEST_SIDE)
    sizes = [(round(picture.width / start / by), round(picture.height / start / by)) for by in SHRINKING]
    return [np.asarray(picture.resize(size, Image.Resampling.HAMMING)) for size in sizes]
