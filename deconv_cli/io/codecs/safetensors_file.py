"""safetensors: named tensors with a text header, which also takes the record of a run; read whole or by parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deconv_cli.errors import UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.codec import StoredImage
from deconv_cli.io.files import refusing_damage
from deconv_cli.io.layout import Array, dtype_name
from deconv_cli.io.region_arrays import Region, RegionSource
from deconv_cli.io.tensors import IMAGE_NAME, TensorCodec, TensorFile, choose_tensor


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
        _write(path, {IMAGE_NAME: torch.from_numpy(np.ascontiguousarray(image.samples))}, image.record or {})

    def open_regions(self, path: Path, member: str | int | None) -> RegionSource:
        """Open a tensor of any size by its name, or the only one."""
        with refusing_damage(path, f"a {self.name} file"):
            listed = self.list_header(path)
            name = choose_tensor(listed, member)
            shape = listed.shapes[name]
            with opened_safetensors(path) as opened:
                dtype = dtype_name(opened.get_slice(name)[tuple(slice(0, 0) for _ in shape)])
        record = records.matching_record(listed.record, shape)
        chunk = tuple(size if i == len(shape) - 1 else 1 for i, size in enumerate(shape))
        return SafetensorsSource(
            *(path, shape, dtype, records.recorded_axes(record), self.name, chunk),
            is_picture=False,
            record=record,
            name=name,
        )


SAFETENSORS = Safetensors()


def opened_safetensors(path: Path) -> Any:  # noqa: ANN401
    """Open a file by its library, whose handle has no type of its own; the tensors are mapped into memory."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def _write(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    from safetensors.torch import save

    # As bytes, since the library would make a file that nobody else may read.
    path.write_bytes(save(tensors, metadata={records.KEYWORD: records.encode_record(record)}))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write named tensors with a record, completely or not at all; raises `UsageError` for names of other formats."""
    if path.suffix not in SAFETENSORS.suffixes:
        raise UsageError(f"'{path}' should end in .safetensors, which is what is written.")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def check(written: Path) -> None:
        if set(SAFETENSORS.list_tensors(written).shapes) != set(contiguous):
            raise ValueError("tensors are missing")

    write_atomically(path, lambda target: _write(target, contiguous, record), check)


@dataclass(frozen=True, eq=False)
class SafetensorsSource(RegionSource):
    """One tensor of a file."""

    name: str = ""

    def read(self, region: Region) -> Array:
        """Read a part."""
        with refusing_damage(self.path, f"a {SAFETENSORS.name} file"), opened_safetensors(self.path) as opened:
            found: Array = opened.get_slice(self.name)[region].numpy()
            return found.copy()
