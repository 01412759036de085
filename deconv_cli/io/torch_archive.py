"""Reading .pt files without ever running what they carry."""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io.limits import check_budget, check_zip
from deconv_cli.io.sources import refusing_damage

_MAX_DEPTH = 32
_MAX_TENSORS = 100_000


def read_torch_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a .pt file; names of nested dictionaries are joined by dots.

    A bare tensor has the empty name. The tensors may still be views that repeat their samples.

    Raises:
        UnsafeInputError: a pickle that names classes or functions, TorchScript, or an exported program.
        MalformedInputError: damaged, or holding no tensor.
        TooLargeError: larger than the memory allows.
    """
    if zipfile.is_zipfile(path):
        _refuse_programs(path, check_zip(path))
    check_budget(path, path.stat().st_size)
    with refusing_damage(path, "a PyTorch file"):
        found = dict(islice(_tensors_in(_load(path), "", ()), _MAX_TENSORS))
    if not found:
        raise MalformedInputError(f"'{path}' should hold a tensor, but holds none.")
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
        with warnings.catch_warnings():
            # torch warns about its own older ways of writing; the file is what it is.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to load such a file without its safeguard; they are not passed on.
        names = _unsafe_names(path)
        if names or "GLOBAL" in str(error) or "Unsupported" in str(error):
            listed = f" ({', '.join(names[:8])})" if names else ""
            raise UnsafeInputError(
                f"'{path}' should hold only tensors, but names Python objects{listed} whose loading could run code; "
                "save its tensors or state_dict() alone."
            ) from error
        raise MalformedInputError(
            f"'{path}' should be a file that torch.save wrote, but is damaged or cut short; copy or save it again."
        ) from error


def _unsafe_names(path: Path) -> list[str]:
    from torch.serialization import get_unsafe_globals_in_checkpoint

    # The names only embellish the refusal; a file that hides them is refused all the same.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    return []


def _tensors_in(found: object, name: str, enclosing: tuple[int, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(found, torch.Tensor):
        yield name, found
    # A pickle may hold containers that contain themselves.
    elif len(enclosing) < _MAX_DEPTH and id(found) not in enclosing and isinstance(found, dict | list | tuple):
        members = found.items() if isinstance(found, dict) else enumerate(found)
        for key, member in members:
            yield from _tensors_in(member, f"{name}.{key}" if name else str(key), (*enclosing, id(found)))
