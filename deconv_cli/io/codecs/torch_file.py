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
        if read_head(path).startswith(_ARCHIVE):
            refuse_program(path, limits.check_zip(path))
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


_PROGRAMS = (
    ({"extern_modules"}, "a torch.package archive", "torch.package.PackageImporter"),
    ({"constants.pkl", "code"}, "a TorchScript file", "torch.jit.load"),
    (
        {"archive_format", "archive_version", "serialized_exported_program.json"},
        "an exported program",
        "torch.export.load",
    ),
)
"""Archives that hold code: entries of theirs, what they are, and what opens them."""


def refuse_program(path: Path, names: Iterable[str]) -> None:
    """Refuse, by `UnsafeInputError`, an archive with these entries if opening it can run its code."""
    parts = {part for name in names for part in name.split("/")}
    for entries, kind, opener in _PROGRAMS:
        if parts & entries:
            raise UnsafeInputError(
                f"'{path}' is {kind}, which can run its own code when opened, so deconv does not open it; open it with "
                f"{opener} and save its state_dict() with torch.save."
            )
