"""PyTorch .pt and safetensors: codecs that load torch with the first file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.codec import StoredImage
from deconv_cli.io.tensors import IMAGE_NAME, TensorCodec, TensorFile

if TYPE_CHECKING:
    from torch import Tensor


class TorchFile(TensorCodec):
    """What `torch.save` writes: a tensor, or dictionaries and lists of them."""

    name = "PyTorch"
    suffixes = (".pt",)
    magic = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

    def list_tensors(self, path: Path) -> TensorFile:
        """Read every tensor; names of nested dictionaries are joined by dots, a bare tensor has the empty name."""
        from deconv_cli.io.codecs.torch_weights import load_weights_only, tensors_in

        return tensors_in(path, load_weights_only(path))

    def write(self, path: Path, image: StoredImage) -> None:
        """Write the bare tensor; into a stream, since torch writes the name of a file into it."""
        import torch

        with path.open("wb") as stream:
            torch.save(torch.from_numpy(np.ascontiguousarray(image.samples)), stream)


TORCH = TorchFile()


class Safetensors(TensorCodec):
    """Files of named tensors."""

    name = "safetensors"
    suffixes = (".safetensors",)
    magic, magic_at = (b"\x00\x00{",), 6
    record_inside = True

    def list_tensors(self, path: Path) -> TensorFile:
        """Read the header. The tensors are copied, since the file may be replaced while they are in use."""
        limits.check_budget(path, path.stat().st_size)
        opened = opened_safetensors(path)  # once: a header of thousands of tensors takes long to read
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118

        def read(name: str) -> Tensor:
            tensor: Tensor = opened.get_tensor(name)
            return tensor.clone()

        def read_rows(name: str, start: int, stop: int) -> Tensor:
            tensor: Tensor = opened.get_slice(name)[start:stop]
            return tensor.clone()

        record = records.decode_record((opened.metadata() or {}).get(records.KEYWORD))
        return TensorFile(path, shapes, read, record, read_rows)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write one tensor with the record."""
        import torch

        _write(path, {IMAGE_NAME: torch.from_numpy(np.ascontiguousarray(image.samples))}, image.record or {})


SAFETENSORS = Safetensors()


def opened_safetensors(path: Path) -> Any:  # noqa: ANN401
    """Open a file by its library, whose handle has no type of its own; the tensors are mapped into memory."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def _write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    from safetensors.torch import save

    # As bytes, since the library would make a file that nobody else may read.
    path.write_bytes(save(tensors, metadata={records.KEYWORD: records.encode_record(record)}))


def write_tensors(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write named tensors with a record, completely or not at all; raises `UsageError` for names of other formats."""
    if path.suffix not in SAFETENSORS.suffixes:
        raise UsageError(f"'{path}' should end in .safetensors, the only format for this output.")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def check(written: Path) -> None:
        if set(SAFETENSORS.list_tensors(written).shapes) != set(contiguous):
            raise ValueError("tensors are missing")

    write_atomically(path, lambda target: _write(target, contiguous, record), check)
