"""What does a picture or a stack that is far larger than the memory take, in memory and in time for each sample?"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import deconv_cli
from benchmarks.blocks import blurred
from benchmarks.measuring import ROOT, Case, Figures, Scale
from benchmarks.printing import Report, Target, column, memory, number, ratio, seconds, small, table, times, word
from deconv_cli.vocabulary import parse_memory

ROOM = 300 * 10**6
"""Memory that a run may use in addition to its limit: the interpreter, and the code of torch."""
LIMIT = 1.5
"""The time of a sample, in that of the whole in memory."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    options: list[str] = scale.pick([], ["--block-size", "128"])
    picture: dict[str, object] = {
        "kernel": "gaussian:2",
        "size": scale.pick([32768] * 2, [300] * 2),
        "whole": scale.pick([4096] * 2, [100] * 2),
        "max_memory": "1GiB",
    }
    stack: dict[str, object] = {
        "kernel": "gaussian3d:1.5@1.2",
        "size": scale.pick([1024, 2048, 2048], [40, 200, 200]),
        "whole": scale.pick([64, 512, 512], [30] * 3),
        "max_memory": "2GiB",
    }
    all_sizes = {"picture, .npy": picture, "stack, OME-Zarr": stack}
    return [Case(name, restored, sizes | {"options": options}) for name, sizes in all_sizes.items()]


def restored(kernel: str, size: list[int], whole: list[int], max_memory: str, options: list[str]) -> Figures:
    """Restore a large file by the command within some memory, and its beginning in memory."""
    with TemporaryDirectory() as place:
        piece = blurred(deconv_cli.make_kernel(kernel), whole)[0].numpy()
        source = Path(place, "in.npy" if len(size) == 2 else "in.ome.zarr")
        _write(source, piece, size)
        _write(Path(place, "piece.npy"), piece, whole)
        in_memory = _invert(Path(place), Path(place, "piece.npy"), kernel, len(size), [])
        found = _invert(Path(place), source, kernel, len(size), ["--max-memory", max_memory, *options])
    return {
        "memory": max_memory,
        "peak_bytes": found["peak_memory_bytes"],
        "time_s": found["time_s"],
        "sample_s": found["time_s"] / math.prod(size),
        "sample_of_whole_s": in_memory["time_s"] / math.prod(whole),
        "seam": found["seam"]["measured"],
    }


def _write(path: Path, piece: np.ndarray[Any, Any], size: list[int]) -> None:
    """Write a file that a piece fills, mirrored over and over."""
    if path.suffix == ".npy":
        file: Any = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=tuple(size))
    else:
        import zarr

        axes = [{"name": letter, "type": "space", "unit": "micrometer"} for letter in "zyx"]
        scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
        levels: Any = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
        group = zarr.open_group(path, mode="w")
        group.attrs["ome"] = {"version": "0.5", "multiscales": levels}
        file = group.create_array("0", shape=tuple(size), chunks=(32, 256, 256), dtype="float32", compressors=None)
    for numbers in np.ndindex(*(-(-n // side) for n, side in zip(size, piece.shape, strict=True))):
        turned = piece[tuple(slice(None, None, -1 if number % 2 else 1) for number in numbers)]
        ends = zip(numbers, piece.shape, size, strict=True)
        region = tuple(slice(number * side, min((number + 1) * side, n)) for number, side, n in ends)
        file[region] = turned[tuple(slice(part.stop - part.start) for part in region)]


def _invert(place: Path, source: Path, kernel: str, n_axes: int, options: list[str]) -> dict[str, Any]:
    """Run the command on a file as on a picture; gives its JSON."""
    words = ["invert", str(source), "--kernel", kernel, "--lambda", "0.01", "--axes", "ZYX"[-n_axes:], *options]
    words += ["--boundary", "unknown", "--penalty", "gradient", "--json", "--force"]
    words += ["--output", str(place / f"out{''.join(source.suffixes)}")]
    done = subprocess.run([sys.executable, "-m", "deconv_cli", *words], cwd=ROOT, capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def report(outcomes: dict[str, Figures]) -> Report:
    """Hold the figures against the targets, and lay them out."""

    def slower(figures: Figures) -> float | None:
        return ratio(number(figures, "sample_s"), number(figures, "sample_of_whole_s"))

    targets = [
        target
        for name, figures in outcomes.items()
        for target in (
            Target(f"{name}: memory beyond what was given", ROOM / 1e6, _beyond(figures), unit=" MB"),
            Target(f"{name}: time of a sample, in that of the whole in memory", LIMIT, slower(figures), unit=" ×"),
        )
    ]
    columns = [
        word("given", "memory"),
        column("peak of memory", "peak_bytes", memory),
        column("time", "time_s", seconds),
        ("a sample, in times of the whole", lambda figures: times(slower(figures))),
        column("at the seams, of the range", "seam", small),
    ]
    title = (
        "A noisy photograph of 32768 × 32768 and cells of 1024 × 2048 × 2048, float32, restored by the command within "
        "1 and 2 GiB, λ = 0.01, unknown border, from its start to its end, against pieces of 4096 × 4096 and 64 × 512 "
        "× 512 that it restores as a whole."
    )
    return Report("Larger than memory", targets, [table(title, "what", outcomes, columns)])


def _beyond(figures: Figures) -> float | None:
    """Give the megabytes that were taken beyond those that were given."""
    peak = number(figures, "peak_bytes")
    return None if peak is None else (peak - parse_memory(str(figures["memory"]))) / 1e6
