"""Which kind of model file this is, told from its content."""

from __future__ import annotations

import zipfile
from enum import StrEnum
from pathlib import Path

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io.limits import check_zip


class ModelFormat(StrEnum):
    """The kinds of files that hold models."""

    SAFETENSORS = "safetensors"
    PICKLE = "PyTorch"
    """What `torch.save` writes: a state dict or a whole module."""
    TORCHSCRIPT = "TorchScript"
    EXPORTED = "exported program"
    """What `torch.export.save` writes."""


def model_format(path: Path, head: bytes) -> ModelFormat:
    """Tell the kind of a model file.

    Args:
        path: the file.
        head: at least its first 16 bytes, fewer if it is shorter.

    Raises:
        UnsafeInputError: a kind that can only be opened by running it.
        MalformedInputError: no model file, or a damaged one.
    """
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    if len(head) > 9 and head[8:9] == b"{" and head[6:8] == b"\x00\x00":
        return ModelFormat.SAFETENSORS
    if head.startswith(b"\x80"):
        return ModelFormat.PICKLE
    raise MalformedInputError(
        f"'{path}' is not one of the model files understood here: .safetensors, what torch.save wrote, TorchScript, "
        ".pt2; it may be cut short or damaged."
    )


def _kind_of_archive(path: Path) -> ModelFormat:
    names = check_zip(path)
    parts = {part for name in names for part in name.split("/")}
    inner = {name.partition("/")[2] for name in names} | set(names)
    if "extern_modules" in parts:
        raise UnsafeInputError(
            f"'{path}' is a torch.package archive, which carries code and is not opened; save its state_dict() instead."
        )
    # TorchScript is looked for first: a file that could be either is treated as the more dangerous of the two.
    if "constants.pkl" in parts or any(name.startswith("code/") for name in inner):
        return ModelFormat.TORCHSCRIPT
    if "archive_format" in inner or "serialized_exported_program.json" in inner:
        return ModelFormat.EXPORTED
    if "data.pkl" in parts:
        return ModelFormat.PICKLE
    raise MalformedInputError(
        f"'{path}' is a zip archive, but holds none of the models understood here; it may be another kind of file."
    )


def read_entries(path: Path) -> dict[str, bytes]:
    """Read every entry of a zip archive, under names without the common first folder.

    Raises:
        MalformedInputError: an entry is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise MalformedInputError(f"'{path}' is damaged: an entry of the archive cannot be read.") from error
    folders = {name.partition("/")[0] for name in entries}
    if len(folders) == 1:
        return {name.partition("/")[2]: content for name, content in entries.items()}
    return entries
