"""torch's weights-only reader: it builds tensors and what an allow-list names, and runs nothing else of a pickle."""

from __future__ import annotations

import contextlib
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io import limits
from deconv_cli.io.allocation_limit import AllocationLimit
from deconv_cli.io.sources import refusing_damage
from deconv_cli.thread_warnings import warnings_here

_MAX_DEPTH = 32
_MAX_MEMBERS = 100_000
"""A pickle may hold containers that contain themselves, or one another in ever more ways."""

AllowedGlobals = Sequence[tuple[Any, str]]
"""Classes and functions that a pickle may name, each with its name in the pickle."""


def load_weights_only(
    path: Path, allowed: AllowedGlobals = (), *, advice: str = "save its tensors or state_dict() alone"
) -> object:
    """Read what `torch.save` wrote.

    Args:
        path: the file; its suffix does not matter.
        allowed: what the pickle may name beyond tensors and plain containers.
        advice: what to do about names that are not allowed.

    Raises:
        UnsafeInputError: the pickle names other classes or functions, or has operations that the reader lacks.
        MalformedInputError: the file is damaged.
        TooLargeError: the file, or what it makes, is larger than half of the memory.
    """
    n_stored = path.stat().st_size
    limits.check_budget(path, n_stored)
    limit = AllocationLimit(str(path), limits.most_bytes(n_stored))
    # torch warns of its own older ways of writing, and turns to another reader where a suffix suggests one.
    with refusing_damage(path, "a file of torch.save"), warnings_here("ignore"), limit:
        if zipfile.is_zipfile(path):  # torch compares no checksums
            with zipfile.ZipFile(path) as archive:
                entry = archive.testzip()
            if entry is not None:
                raise ValueError(f"the checksum of its entry {entry} does not fit")
        try:
            with (
                path.open("rb") as stream,
                torch.serialization.safe_globals(list(allowed)),
                torch.sparse.check_sparse_tensor_invariants(),
            ):
                found: object = torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refusal(path, str(error), {name for _, name in allowed}, advice) from error
    return found


def globals_in(path: Path) -> list[str]:
    """List the classes and functions that a pickle names beyond tensors; none of them is run."""
    with contextlib.suppress(Exception), warnings_here("ignore"), path.open("rb") as stream:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    return []


def named_tensors(path: Path, found: object) -> dict[str, torch.Tensor]:
    """List the tensors in nested containers; names are joined by dots, and a bare tensor has the empty name.

    Raises:
        MalformedInputError: they nest without end, or so often that a small file stands for any number of them.
        TooLargeError: views that repeat a few samples, which would unfold to much more than the file holds.
    """
    tensors: dict[str, torch.Tensor] = {}
    waiting: list[tuple[str, object, int]] = [("", found, 0)]
    n_containers = 0
    while waiting:
        name, member, depth = waiting.pop()
        if isinstance(member, torch.Tensor):
            tensors[name] = member
        elif isinstance(member, dict | list | tuple):
            n_containers += 1
            if depth > _MAX_DEPTH or n_containers + len(waiting) > _MAX_MEMBERS:
                raise MalformedInputError(f"'{path}' nests its dictionaries without end; save its state_dict() alone.")
            keyed = list(member.items() if isinstance(member, dict) else enumerate(member))
            waiting += [
                (f"{name}.{key}" if name else str(key), part, depth + 1)
                for key, part in reversed(keyed)
                if isinstance(part, torch.Tensor | dict | list | tuple)
            ]
    dense = [tensor for tensor in tensors.values() if _storage_kind(tensor) is None]
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in dense)
    limits.check_expansion(path, n_bytes, path.stat().st_size, n_parts=len(tensors))
    return tensors


def check_dense(path: Path, tensor: torch.Tensor, name: str = "") -> None:
    """Refuse a tensor that is not stored sample by sample, or whose samples are one sample repeated.

    Raises:
        MalformedInputError: sparse, nested, quantized or without data.
        TooLargeError: a view that would unfold to much more than the file holds.
    """
    named = f"'{name}' of '{path}'" if name else f"'{path}'"
    kind = _storage_kind(tensor)
    if kind is not None:
        raise MalformedInputError(f"{named} should be a dense tensor, but is {kind}; convert it first.")
    # Strides of zero let a few stored bytes stand for any number of samples.
    limits.check_expansion(path, tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _storage_kind(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantized"
    return "without data (meta device)" if tensor.is_meta else None


def _refusal(path: Path, reason: str, allowed: set[str], advice: str) -> UnsafeInputError | MalformedInputError:
    # torch's own words advise to load such a file without its safeguard; they are not passed on.
    names = [name for name in globals_in(path) if name not in allowed] or re.findall(r"GLOBAL ([\w.]+)", reason)
    if names:
        return UnsafeInputError(
            f"'{path}' names Python objects ({', '.join(names[:8])}) that are not allowed, since loading them could "
            f"run code; {advice}."
        )
    lacking = re.search(r"Unsupported operand \d+", reason)
    if lacking or "Unsupported" in reason:
        return UnsafeInputError(
            f"'{path}' is a pickle with operations that torch's weights-only reader lacks "
            f"({lacking[0] if lacking else 'unsupported class'}); save it again with torch.save and its default pickle "
            "protocol, or its state_dict() alone."
        )
    return MalformedInputError(
        f"'{path}' should be a file that torch.save wrote, but is damaged or cut short; copy or save it again."
    )
