"""Tensors in nested containers, and their norms and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

HALF = (torch.float16, torch.bfloat16)
NARROW = (torch.float32, *HALF)
"""Types with fewer digits than float64."""


def tensors_in(found: Any) -> list[torch.Tensor]:  # noqa: ANN401  anything that holds tensors
    """List the tensors in nested lists, tuples, dictionaries and dataclasses."""
    tensors: list[torch.Tensor] = []
    for leaf in pytree.tree_leaves(found):
        if isinstance(leaf, torch.Tensor):
            tensors.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            tensors += tensors_in([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
    return tensors


def real(found: Any) -> list[torch.Tensor]:  # noqa: ANN401  anything that holds tensors
    """List the floating-point tensors in nested containers."""
    return [tensor for tensor in tensors_in(found) if tensor.is_floating_point()]


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to a dense one in double precision, real or complex."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return dense.to(torch.complex128 if dense.is_complex() else torch.float64)


def norm_of(tensor: torch.Tensor) -> float:
    """Compute the Euclidean norm, of complex numbers by their magnitudes."""
    return float(to_float64(tensor).norm())


def storage_key(tensor: torch.Tensor) -> int:
    """Return a key of the memory of a tensor, which its views share."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):
        return -id(tensor)


def leaves_of(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """List the leaves of nested containers, or the value itself; a container that holds itself is entered once."""
    waiting, seen = [value], set[int]()
    while waiting:
        found = waiting.pop()
        if not isinstance(found, list | tuple | dict):
            yield found
        elif id(found) not in seen:
            seen.add(id(found))
            waiting += reversed(list(found.values() if isinstance(found, dict) else found))
