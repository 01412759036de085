"""Reading the tensors of .pt files without ever running what the files carry."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io.limits import check_zip
from deconv_cli.io.weights_only import load_weights_only, named_tensors


def read_torch_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a .pt file; names of nested dictionaries are joined by dots.

    A bare tensor has the empty name. The tensors may still be views that repeat their samples.

    Raises:
        UnsafeInputError: a pickle that names classes or functions, TorchScript, or an exported program.
        MalformedInputError: damaged, or holding no tensor.
        TooLargeError: larger than the memory allows.
    """
    if zipfile.is_zipfile(path):
        _refuse_programs(path, check_zip(path))
    found = named_tensors(load_weights_only(path))
    if not found:
        raise MalformedInputError(f"'{path}' should hold a tensor, but holds none.")
    return found


def _refuse_programs(path: Path, names: list[str]) -> None:
    parts = {part for name in names for part in name.split("/")}
    if "constants.pkl" in parts or "code" in parts:
        raise UnsafeInputError(
            f"'{path}' is a TorchScript program, which is not opened; save its state_dict() with torch.save instead."
        )
    if "archive_format" in parts or "archive_version" in parts or "serialized_exported_program.json" in parts:
        raise UnsafeInputError(
            f"'{path}' is an exported program (.pt2), which is not opened; save its state_dict() instead."
        )
