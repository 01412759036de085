"""PyTorch .pt: tensors are read without ever running what the file carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deconv_cli.errors import UnsafeInputError
from deconv_cli.io import limits
from deconv_cli.io.sources import read_head
from deconv_cli.io.stored_image import StoredImage
from deconv_cli.io.tensors import TensorCodec, TensorFile
from deconv_cli.io.weights_only import check_dense, load_weights_only, named_tensors

_ARCHIVE = b"PK\x03\x04"


class TorchFile(TensorCodec):
    """What `torch.save` writes: a tensor, or dictionaries and lists of them."""

    name = "PyTorch"
    suffixes = (".pt",)
    magic = (_ARCHIVE, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

    def list_tensors(self, path: Path) -> TensorFile:
        """Read every tensor; names of nested dictionaries are joined by dots."""
        tensors = read_torch_tensors(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return TensorFile(path, shapes, lambda name: _unfolded(path, name, tensors[name]))

    def write(self, path: Path, image: StoredImage) -> None:
        """Write the bare tensor."""
        torch.save(torch.from_numpy(np.ascontiguousarray(image.samples)), path)


TORCH = TorchFile()


def read_torch_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a .pt file; a bare tensor has the empty name.

    The tensors may still be views that repeat their samples.

    Raises:
        UnsafeInputError: a pickle that names classes or functions, TorchScript, or an exported program.
        MalformedInputError: damaged, or containers that nest without end.
        TooLargeError: larger than the memory allows.
    """
    if read_head(path).startswith(_ARCHIVE):
        _refuse_programs(path, limits.check_zip(path))
    found = named_tensors(path, load_weights_only(path))
    for name, tensor in found.items():
        if tensor.is_nested:  # its shape cannot even be listed
            check_dense(path, tensor, name)
    return found


def _unfolded(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Take a dense tensor whose samples all lie in the file."""
    check_dense(path, tensor, name)
    limits.check_budget(path, tensor.numel() * tensor.element_size())
    return tensor.detach().contiguous()


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
