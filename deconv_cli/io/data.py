"""Files of named tensors: what a model is fed with, read a few rows at a time, and what is found of its parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import records
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.formats import FileFormat, format_of_content
from deconv_cli.io.sources import open_source, refusing_damage
from deconv_cli.io.tensors import open_tensors


@dataclass(frozen=True, eq=False)
class DataFile:
    """Named tensors whose first axis counts samples.

    Attributes:
        path: the file.
        shapes: by name; a bare tensor is called `input`.
        rows: reads samples `start` to `stop` of every tensor; single numbers are read whole.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    rows: Callable[[int, int], dict[str, torch.Tensor]]

    @property
    def n_samples(self) -> int:
        """How many samples there are.

        Raises:
            MalformedInputError: the tensors do not agree on it.
        """
        sizes = {name: shape[0] for name, shape in self.shapes.items() if shape}
        if len(set(sizes.values())) != 1:
            listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
            raise MalformedInputError(
                f"'{self.path}' should hold tensors with the same number of samples along their first axis, but holds "
                f"{listed or 'single numbers'}."
            )
        return next(iter(sizes.values()))

    def samples(self, n: int | None) -> dict[str, torch.Tensor]:
        """Read the first samples of every tensor.

        Args:
            n: how many at most; None reads every tensor whole, whichever axis counts the samples.

        Raises:
            MalformedInputError: the tensors do not agree on the number of samples, or hold none.
        """
        if n is None:
            return self.rows(0, max((shape[0] for shape in self.shapes.values() if shape), default=0))
        if not self.n_samples:
            raise MalformedInputError(f"'{self.path}' should hold samples along its first axis, but holds none.")
        return self.rows(0, n)


def open_data(path: Path) -> DataFile:
    """Open a .safetensors, .pt, .npz or .npy file of tensors. From .safetensors only the rows asked for are read.

    Raises:
        UsageError: no such file.
        InputRefusedError: unsafe, damaged, too large, or no file of tensors.
    """
    head, _ = open_source(path)
    file_format = format_of_content(path, head)
    if file_format.is_picture:
        raise MalformedInputError(f"'{path}' should be a file of tensors, but is a {file_format} picture.")
    opened = open_tensors(path, file_format)
    shapes = {name or "input": shape for name, shape in opened.shapes.items()}
    if file_format is FileFormat.SAFETENSORS:
        return DataFile(path, shapes, lambda start, stop: _rows_of_safetensors(path, shapes, start, stop))
    tensors = {}
    for name in opened.shapes:
        samples = opened.read(name)
        tensor = torch.from_numpy(np.ascontiguousarray(samples)) if isinstance(samples, np.ndarray) else samples
        tensors[name or "input"] = tensor

    def rows(start: int, stop: int) -> dict[str, torch.Tensor]:
        return {name: tensor[start:stop] if tensor.ndim else tensor for name, tensor in tensors.items()}

    return DataFile(path, shapes, rows)


def _rows_of_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], start: int, stop: int
) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    found = {}
    with refusing_damage(path, "a .safetensors file"), safe_open(path, framework="pt") as opened:
        for name, shape in shapes.items():
            found[name] = opened.get_slice(name)[start:stop].clone() if shape else opened.get_tensor(name).clone()
    return found


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write named tensors with a record into a .safetensors file, completely or not at all.

    Raises:
        UsageError: the name does not end in .safetensors.
        FileAccessError: it cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"'{path}' should end in .safetensors, which is what is written.")
    from safetensors import safe_open
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def check(written: Path) -> None:
        with safe_open(written, framework="pt") as opened:
            if set(opened.keys()) != set(contiguous):
                raise ValueError("tensors are missing")

    write_atomically(
        path, lambda target: save_file(contiguous, target, metadata={records.KEYWORD: json.dumps(record)}), check
    )
