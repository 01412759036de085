"""safetensors: named tensors with a text header, which also takes the record of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
        with opened_safetensors(path) as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}

        def read(name: str) -> torch.Tensor:
            with opened_safetensors(path) as again:
                tensor: torch.Tensor = again.get_tensor(name)
                return tensor.clone()

        def read_rows(name: str, start: int, stop: int) -> torch.Tensor:
            with opened_safetensors(path) as again:
                tensor: torch.Tensor = again.get_slice(name)[start:stop]
                return tensor.clone()

        record = records.decode_record(metadata.get(records.KEYWORD))
        return TensorFile(path, shapes, read, record, read_rows)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write one tensor with the record."""
        write_safetensors(path, {IMAGE_NAME: torch.from_numpy(np.ascontiguousarray(image.samples))}, image.record or {})


SAFETENSORS = Safetensors()


@contextmanager
def opened_safetensors(path: Path) -> Iterator[Any]:
    """Open a file by its library, whose handle has no type of its own; the tensors are mapped into memory."""
    from safetensors import safe_open

    with ExitStack() as stack:
        named = path
        if "\ufffd" in str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace"):
            # The library opens no name that is not UTF-8.
            named = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "link.safetensors"
            named.symlink_to(path.absolute())
        yield stack.enter_context(safe_open(named, framework="pt"))


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write contiguous tensors with the record of a run."""
    from safetensors.torch import save

    # As bytes, since the library changes a name that is not UTF-8.
    path.write_bytes(save(tensors, metadata={records.KEYWORD: records.encode_record(record)}))
