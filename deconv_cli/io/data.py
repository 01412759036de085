"""Files of named tensors whose first axis counts samples: read a few rows at a time, and written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.codecs.safetensors_file import SAFETENSORS, write_safetensors
from deconv_cli.io.formats import codec_of_content
from deconv_cli.io.samples import Samples
from deconv_cli.io.sources import read_head, refusing_damage
from deconv_cli.io.tensors import TensorCodec, open_tensors

UNNAMED = "input"
"""What a bare tensor is called."""


@dataclass(frozen=True, eq=False)
class DataFile:
    """Named tensors whose first axis counts samples; a bare tensor is called `input`.

    `rows` reads samples `start` to `stop` of every tensor; single numbers are read whole.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    rows: Callable[[int, int], dict[str, torch.Tensor]]

    @property
    def n_samples(self) -> int:
        """How many samples there are; a `MalformedInputError` if the tensors do not agree on it."""
        sizes = {name: shape[0] for name, shape in self.shapes.items() if shape}
        if len(set(sizes.values())) != 1:
            listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
            raise MalformedInputError(
                f"'{self.path}' should hold tensors with the same number of samples along their first axis, but holds "
                f"{listed or 'single numbers'}."
            )
        return next(iter(sizes.values()))

    def samples(self, n: int | None) -> dict[str, torch.Tensor]:
        """Read `n` samples of every tensor at most; None reads tensors whole, whichever axis counts the samples.

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
    codec = codec_of_content(path, read_head(path))
    if not isinstance(codec, TensorCodec):
        raise MalformedInputError(f"'{path}' should be a file of tensors, but is a {codec.name} picture.")
    opened = open_tensors(path, codec)
    stored = {name or UNNAMED: name for name in opened.shapes}
    read_whole = functools.cache(opened.read)

    def read(name: str, start: int, stop: int) -> Samples:
        if not opened.shapes[name]:
            return read_whole(name)
        return opened.read_rows(name, start, stop) if opened.read_rows else read_whole(name)[start:stop]

    def rows(start: int, stop: int) -> dict[str, torch.Tensor]:
        with refusing_damage(path, f"a {codec.name} file"):
            return {name: torch.as_tensor(read(inner, start, stop)) for name, inner in stored.items()}

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
