"""PyTorch .pt: a codec that loads torch with the first file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deconv_cli.errors import UnsafeInputError
from deconv_cli.io import limits
from deconv_cli.io.codec import StoredImage
from deconv_cli.io.files import read_head
from deconv_cli.io.tensors import TensorCodec, TensorFile

if TYPE_CHECKING:
    import torch

_ARCHIVE = b"PK\x03\x04"


class TorchFile(TensorCodec):
    """What `torch.save` writes: a tensor, or dictionaries and lists of them."""

    name = "PyTorch"
    suffixes = (".pt",)
    magic = (_ARCHIVE, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

    def list_tensors(self, path: Path) -> TensorFile:
        """Read every tensor; names of nested dictionaries are joined by dots, a bare tensor has the empty name."""
        kind = program_kind(limits.check_zip(path)) if read_head(path).startswith(_ARCHIVE) else None
        if kind is not None:
            raise UnsafeInputError(
                f"'{path}' is a file of the kind {kind}, which deconv does not open; save its state_dict() with "
                "torch.save instead."
            )
        from deconv_cli.io.codecs.torch_weights import check_dense, load_weights_only, named_tensors

        tensors = named_tensors(path, load_weights_only(path))
        for name, tensor in tensors.items():
            if tensor.is_nested:  # its shape cannot even be listed
                check_dense(path, tensor, name)

        def read(name: str) -> torch.Tensor:
            tensor = tensors[name]
            check_dense(path, tensor, name)
            limits.check_budget(path, tensor.numel() * tensor.element_size())
            return tensor.detach().contiguous()

        return TensorFile(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, read)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write the bare tensor; into a stream, since torch writes the name of a file into it."""
        import torch

        with path.open("wb") as stream:
            torch.save(torch.from_numpy(np.ascontiguousarray(image.samples)), stream)


TORCH = TorchFile()


def program_kind(names: Iterable[str]) -> str | None:
    """Name the kind of program that an archive with these entries holds; None for tensors, or a plain module."""
    parts = {part for name in names for part in name.split("/")}
    # A file that could be either is treated as the kind that torch.load would run.
    if parts & {"constants.pkl", "code"}:
        return "TorchScript"
    is_exported = parts & {"archive_format", "archive_version", "serialized_exported_program.json"}
    return "exported program" if is_exported else None
