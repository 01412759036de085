"""safetensors: named tensors with a text header that takes the record of a run, and inverses saved in such files.

The factors of an inverse are mapped into memory from multiples of 64 bytes, and their layout in memory is restored axis
by axis: factorizations work best from there, and need not round alike elsewhere.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.atomic import check_output_path, write_atomically
from deconv_cli.io.codec import StoredImage, codec_of_content
from deconv_cli.io.files import read_head, refusing_damage
from deconv_cli.io.layout import dtype_name
from deconv_cli.io.tensors import IMAGE_NAME, TensorCodec, TensorFile

if TYPE_CHECKING:
    from torch import Tensor

KEYWORD = "deconv_inverse"
SUFFIX = ".safetensors"
SCHEMA = 1

_CHECKSUM = f"{KEYWORD}_crc32"
_ALIGNMENT = 64
_ADVICE = "make one with deconv factor, or from Python with save_pseudo_inverse"
_CODES = {"float32": "F32", "float64": "F64", "int32": "I32", "uint8": "U8"}


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


@dataclass(frozen=True, eq=False)
class SavedState:
    """Tensors by name, in the memory layout in which they were written, and a JSON object.

    Mapped tensors are read from the disk at their first use.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def check_state_path(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a path that `write_state` could not write to, as `check_output_path` does, or of another suffix."""
    if path.suffix.lower() != SUFFIX:
        raise UsageError(f"a saved inverse must end in {SUFFIX}, but the output is '{path}'; change the suffix.")
    check_output_path(path, source, force=force)


def write_state(path: Path, state: SavedState) -> None:
    """Write real or complex tensors in single or double precision, or of int32 or uint8, completely or not at all."""
    stored = {name: _unfold(tensor) for name, tensor in state.tensors.items()}
    # Tensors that would misalign others go last.
    names = sorted(stored, key=lambda name: (stored[name].nbytes % _ALIGNMENT != 0, name))
    members = {
        name: {"order": _memory_order(tensor), "is_complex": tensor.is_complex(), "sum": _sum(stored[name])}
        for name, tensor in state.tensors.items()
    }
    text = records.encode_record({"schema": SCHEMA, "members": members, "record": state.record})
    header: dict[str, Any] = {"__metadata__": {KEYWORD: text, _CHECKSUM: f"{zlib.crc32(text.encode()):08x}"}}
    end = 0
    for name in names:
        start, end = end, end + stored[name].nbytes
        shape = list(stored[name].shape)
        header[name] = {"dtype": _CODES[dtype_name(stored[name])], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(8 + len(encoded)) % _ALIGNMENT)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            stream.write(len(encoded).to_bytes(8, "little") + encoded)
            for name in names:
                if stored[name].numel():
                    stream.write(stored[name].reshape(-1).numpy().data.cast("B"))

    def check(temporary: Path) -> None:
        read_state(temporary)  # its checksums are those of the tensors in memory

    write_atomically(path, write, check)


def read_state(path: Path) -> SavedState:
    """Read a saved inverse; a damaged, too large, newer or other file raises an `InputRefusedError`."""
    codec = codec_of_content(path, read_head(path))
    if codec is not SAFETENSORS:
        raise MalformedInputError(f"'{path}' should be a saved inverse, but is a {codec.name} file; {_ADVICE}.")
    limits.check_budget(path, path.stat().st_size)
    with refusing_damage(path, "a safetensors file"), opened_safetensors(path) as opened:
        metadata = opened.metadata() or {}
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if KEYWORD not in metadata:
        raise MalformedInputError(f"'{path}' should be a saved inverse, but holds other tensors; {_ADVICE}.")
    content = records.decode_record(metadata[KEYWORD])
    if content is None or metadata.get(_CHECKSUM) != f"{zlib.crc32(metadata[KEYWORD].encode()):08x}":
        raise _damaged(path, "its record does not match its checksum")
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise MalformedInputError(
            f"'{path}' is a saved inverse of schema {schema}, but this version reads schemas up to {SCHEMA}; use a "
            "newer version of deconv, or factor again."
        )
    members, record = content.get("members"), content.get("record")
    if schema != SCHEMA or not isinstance(members, dict) or not isinstance(record, dict):
        raise _damaged(path, "its record was changed")
    if members.keys() != stored.keys():
        raise _damaged(path, "some of its tensors are not those of its record")
    return SavedState({name: _fold(path, name, stored[name], members[name]) for name in stored}, record)


def _damaged(path: Path, why: str) -> MalformedInputError:
    return MalformedInputError(f"'{path}' is a damaged saved inverse, since {why}; copy it or factor again.")


def _memory_order(tensor: Tensor) -> list[int]:
    """List the axes by their strides, the widest first."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda axis: -strides[axis])


def _unfold(tensor: Tensor) -> Tensor:
    """Order the numbers as in memory: on the CPU, contiguous, and real."""
    import torch

    lying = tensor.detach().permute(_memory_order(tensor)).resolve_conj().resolve_neg().cpu().contiguous()
    return torch.view_as_real(lying) if lying.is_complex() else lying


def _fold(path: Path, name: str, stored: Tensor, member: Any) -> Tensor:  # noqa: ANN401 (JSON)
    """Undo `_unfold`, as the record describes it, and check the numbers."""
    import torch

    if stored.data_ptr() % _ALIGNMENT:
        stored = stored.clone()
    try:
        if dtype_name(stored) not in _CODES or _sum(stored) != member["sum"]:
            raise ValueError("another checksum")
        lying, order = torch.view_as_complex(stored) if member["is_complex"] else stored, list(member["order"])
        return lying.permute([order.index(axis) for axis in range(max(lying.ndim, len(order)))])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(path, f"its tensor '{name}' was changed") from error


def _sum(stored: Tensor) -> int:
    """Sum the bytes as whole numbers of 64 or 32 bits, modulo 2⁶⁴: a checksum at the speed of the memory."""
    import torch

    flat = stored.reshape(-1).view(torch.uint8)
    for words in (torch.int64, torch.int32):
        if flat.numel() % words.itemsize == 0:
            return int(flat.view(words).sum())
    return int(flat.sum())
