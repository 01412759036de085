"""Files of named tensors whose first axis counts samples: read a few rows at a time, and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.codecs.safetensors_file import SAFETENSORS, write_safetensors
from deconv_cli.io.formats import codec_of_content
from deconv_cli.io.sources import open_source, refusing_damage
from deconv_cli.io.tensors import TensorCodec, open_tensors

UNNAMED = "input"
"""What a bare tensor is called."""


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
    """Open a file of tensors. Only the rows asked for are read, where the format allows it.

    Raises:
        UsageError: no such file.
        InputRefusedError: unsafe, damaged, too large, or no file of tensors.
    """
    head, _ = open_source(path)
    codec = codec_of_content(path, head)
    if not isinstance(codec, TensorCodec):
        raise MalformedInputError(f"'{path}' should be a file of tensors, but is a {codec.name} picture.")
    opened = open_tensors(path, codec)
    stored = {name or UNNAMED: name for name in opened.shapes}
    whole: dict[str, torch.Tensor] = {}

    def rows(start: int, stop: int) -> dict[str, torch.Tensor]:
        found = {}
        for name, inner in stored.items():
            if opened.read_rows is not None and opened.shapes[inner]:
                with refusing_damage(path, f"a {codec.name} file"):
                    found[name] = torch.as_tensor(opened.read_rows(inner, start, stop))
                continue
            if name not in whole:
                whole[name] = torch.as_tensor(opened.read(inner))
            found[name] = whole[name][start:stop] if whole[name].ndim else whole[name]
        return found

    return DataFile(path, {name: opened.shapes[inner] for name, inner in stored.items()}, rows)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write named tensors with a record into a .safetensors file, completely or not at all.

    Raises:
        UsageError: the name does not end in .safetensors.
        FileAccessError: it cannot be written.
    """
    if path.suffix not in SAFETENSORS.suffixes:
        raise UsageError(f"'{path}' should end in .safetensors, which is what is written.")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def check(written: Path) -> None:
        if set(SAFETENSORS.list_tensors(written).shapes) != set(contiguous):
            raise ValueError("tensors are missing")

    write_atomically(path, lambda target: write_safetensors(target, contiguous, record), check)
