"""PyTorch .pt: tensors are read without ever running what the file carries."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from deconv_cli.errors import MalformedInputError, TooLargeError, UnsafeInputError
from deconv_cli.io import limits
from deconv_cli.io.pickle_dialect import strangeness
from deconv_cli.io.sources import read_head
from deconv_cli.io.stored_image import StoredImage
from deconv_cli.io.tensors import TensorCodec, TensorFile
from deconv_cli.vocabulary import format_memory

_ARCHIVE = b"PK\x03\x04"
_MAX_DEPTH = 32
_MAX_CONTAINERS = 100_000


class TorchFile(TensorCodec):
    """What `torch.save` writes: a tensor, or dictionaries and lists of them."""

    name = "PyTorch"
    suffixes = (".pt",)
    magic = (_ARCHIVE, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

    def list_tensors(self, path: Path) -> TensorFile:
        """Read every tensor; names of nested dictionaries are joined by dots."""
        tensors = read_torch_tensors(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return TensorFile(path, shapes, lambda name: _unfolded(path, tensors[name]))

    def write(self, path: Path, image: StoredImage) -> None:
        """Write the bare tensor."""
        torch.save(torch.from_numpy(np.ascontiguousarray(image.samples)), path)


TORCH = TorchFile()


def read_torch_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a .pt file; a bare tensor has the empty name.

    The tensors may still be views that repeat their samples.

    Raises:
        UnsafeInputError: a pickle that names classes or functions, TorchScript, or an exported program.
        MalformedInputError: damaged, or holding a nested tensor.
        TooLargeError: larger than the memory allows.
    """
    if read_head(path).startswith(_ARCHIVE):
        _refuse_programs(path, limits.check_zip(path))
    limits.check_budget(path, path.stat().st_size)
    found = dict(_tensors_in(path, _load(path)))
    for name, tensor in found.items():
        if tensor.is_nested:
            raise MalformedInputError(
                f"'{path}' should hold dense tensors, but '{name}' is a nested one; save its parts instead."
            )
    return found


def _refuse_programs(path: Path, names: list[str]) -> None:
    parts = {part for name in names for part in name.split("/")}
    if "constants.pkl" in parts or "code" in parts:
        raise UnsafeInputError(
            f"'{path}' is a TorchScript program, which is not opened; save its state_dict() with torch.save instead."
        )
    if "archive_format" in parts or "archive_version" in parts or "serialized_exported_program.json" in parts:
        raise UnsafeInputError(
            f"'{path}' is an exported program (.pt2), which is not opened; save its state_dict() instead."
        )


def _load(path: Path) -> object:
    try:
        # Not by its name, whose suffix torch would go by; it warns about its own older ways of writing.
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to load such a file without its safeguard; they are not passed on.
        names = _unsafe_names(path)
        strange = None if names else strangeness(path)
        if strange is not None:
            raise UnsafeInputError(f"'{path}' {strange}.") from error
        if names or "GLOBAL" in str(error) or "Unsupported" in str(error):
            listed = f" ({', '.join(names[:8])})" if names else ""
            raise UnsafeInputError(
                f"'{path}' should hold only tensors, but names Python objects{listed} whose loading could run code; "
                "save its tensors or state_dict() alone."
            ) from error
        raise MalformedInputError(
            f"'{path}' should be a file that torch.save wrote, but is damaged or cut short; copy or save it again."
        ) from error


def _unfolded(path: Path, tensor: torch.Tensor) -> torch.Tensor:
    """Take a dense tensor whose samples all lie in the file."""
    kinds = {
        "sparse": tensor.layout is not torch.strided,
        "quantized": tensor.is_quantized,
        "without data (meta device)": tensor.is_meta,
    }
    for kind, is_so in kinds.items():
        if is_so:
            raise MalformedInputError(f"'{path}' should hold a dense tensor, but it is {kind}; convert it first.")
    n_bytes = tensor.numel() * tensor.element_size()
    # Strides of zero let a few stored bytes stand for any number of samples.
    if n_bytes > max(limits.MAX_VIEW_BYTES, tensor.untyped_storage().nbytes()):
        raise TooLargeError(
            f"'{path}' holds a view of shape {tuple(tensor.shape)} that repeats a few samples and would unfold "
            f"to {format_memory(n_bytes)}; save it with .contiguous() if it is meant."
        )
    limits.check_budget(path, n_bytes)
    return tensor.detach().contiguous()


def _unsafe_names(path: Path) -> list[str]:
    from torch.serialization import get_unsafe_globals_in_checkpoint

    # The names only embellish the refusal; a file that hides them is refused all the same.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    return []


def _tensors_in(path: Path, found: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Go through nested dictionaries, lists and tuples; names are joined by dots.

    Raises:
        MalformedInputError: they nest without end, or so often that a small file stands for any number of them.
    """
    waiting, n_containers = [("", found, 0)], 0
    while waiting:
        name, member, depth = waiting.pop()
        if isinstance(member, torch.Tensor):
            yield name, member
        elif isinstance(member, dict | list | tuple):
            n_containers += 1
            if depth > _MAX_DEPTH or n_containers > _MAX_CONTAINERS:
                raise MalformedInputError(f"'{path}' nests its dictionaries without end; save its state_dict() alone.")
            members = list(member.items() if isinstance(member, dict) else enumerate(member))
            inner = [(f"{name}.{key}" if name else str(key), part, depth + 1) for key, part in members]
            waiting += reversed(inner)
