"""Which kind of model file this is, recognized by its content."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io.codecs.safetensors_file import SAFETENSORS
from deconv_cli.io.codecs.torch_file import program_kind
from deconv_cli.io.limits import check_zip


class ModelFormat(StrEnum):
    """The kinds of files that hold models."""

    SAFETENSORS = "safetensors"
    """A state dict."""
    PICKLE = "PyTorch"
    """What `torch.save` writes: a state dict or a whole module."""
    TORCHSCRIPT = "TorchScript"
    EXPORTED = "exported program"
    """What `torch.export.save` writes."""

    @property
    def is_program(self) -> bool:
        """True for files that can only be opened by running what they carry."""
        return self in (ModelFormat.TORCHSCRIPT, ModelFormat.EXPORTED)


def model_format(path: Path, head: bytes) -> ModelFormat:
    """Recognize the kind of a model file by its first 16 bytes, and by the directory of an archive.

    Raises:
        UnsafeInputError: a torch.package archive.
        MalformedInputError: no model file, or a damaged one.
        TooLargeError: an archive larger than half of the memory, or a decompression bomb.
    """
    if head.startswith(b"PK"):
        return _format_of_archive(path)
    if SAFETENSORS.recognizes(head):
        return ModelFormat.SAFETENSORS
    if head.startswith(b"\x80"):
        return ModelFormat.PICKLE
    raise MalformedInputError(
        f"'{path}' is not one of the model files understood here: .safetensors, what torch.save wrote, TorchScript, "
        ".pt2; it may be cut short or damaged."
    )


def _format_of_archive(path: Path) -> ModelFormat:
    names = check_zip(path)
    parts = {part for name in names for part in name.split("/")}
    if "extern_modules" in parts:
        raise UnsafeInputError(
            f"'{path}' is a torch.package archive, which carries code and is not opened; save its state_dict() instead."
        )
    kind = program_kind(names)
    if kind is not None:
        return ModelFormat(kind)
    if "data.pkl" in parts:
        return ModelFormat.PICKLE
    raise MalformedInputError(
        f"'{path}' is a zip archive, but holds none of the models understood here; it may be another kind of file."
    )
