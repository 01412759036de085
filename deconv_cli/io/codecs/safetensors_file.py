"""safetensors: named tensors with a text header that takes the record of a run."""

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

        record = records.decode_record((opened.metadata() or {}).get(records.KEYWORD))
        return TensorFile(path, shapes, read, record)

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
