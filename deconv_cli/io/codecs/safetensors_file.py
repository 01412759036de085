"""safetensors: named tensors with a text header, which also takes the record of a run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deconv_cli.io import limits, records
from deconv_cli.io.stored_image import StoredImage
from deconv_cli.io.tensors import IMAGE_NAME, TensorCodec, TensorFile


class Safetensors(TensorCodec):
    """Files of named tensors."""

    name = "safetensors"
    suffixes = (".safetensors",)
    record_inside = True

    def recognizes(self, head: bytes) -> bool:
        """Look for the length of a header, and its first brace."""
        return len(head) > 9 and head[8:9] == b"{" and head[6:8] == b"\x00\x00"

    def list_tensors(self, path: Path) -> TensorFile:
        """Read the header. The tensors are copied, since the file may be replaced while they are in use."""
        limits.check_budget(path, path.stat().st_size)
        return self.list_header(path)

    def list_header(self, path: Path) -> TensorFile:
        """List the tensors of a file that may be larger than the memory."""
        opened = opened_safetensors(path)  # once: a header of thousands of tensors takes long to read
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118

        def read(name: str) -> torch.Tensor:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor.clone()

        def read_rows(name: str, start: int, stop: int) -> torch.Tensor:
            tensor: torch.Tensor = opened.get_slice(name)[start:stop]
            return tensor.clone()

        record = records.decode_record((opened.metadata() or {}).get(records.KEYWORD))
        return TensorFile(path, shapes, read, record, read_rows)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write one tensor with the record."""
        write_safetensors(path, {IMAGE_NAME: torch.from_numpy(np.ascontiguousarray(image.samples))}, image.record or {})


SAFETENSORS = Safetensors()


def opened_safetensors(path: Path) -> Any:  # noqa: ANN401
    """Open a file by its library, whose handle has no type of its own; the tensors are mapped into memory."""
    from safetensors import safe_open

    if "\ufffd" not in str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace"):
        return safe_open(path, framework="pt")
    with tempfile.TemporaryDirectory() as folder:  # the library opens no name that is not UTF-8
        link = Path(folder) / "link.safetensors"
        link.symlink_to(path.absolute())
        return safe_open(link, framework="pt")


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write contiguous tensors with the record of a run."""
    from safetensors.torch import save

    # As bytes, since the library changes a name that is not UTF-8.
    path.write_bytes(save(tensors, metadata={records.KEYWORD: records.encode_record(record)}))
