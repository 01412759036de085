"""Kernels that torch has no float64 of, written with functions that have it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


def _multiply_groups(
    rows: torch.Tensor,
    matrices: torch.Tensor,
    *,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Multiply each group of rows, shape (rows, n), by its own matrix, shape (groups, n, m), as experts do.

    Args:
        rows: group after group.
        matrices: one for each group.
        offs: where each group ends; rows after the last one count for nothing.
        bias: added to all products.
        out_dtype: of the result, where it is another one.
    """
    ends = [0, *offs.tolist()]
    groups = zip(pairwise(ends), matrices, strict=True)
    products = [rows[first:end] @ matrix for (first, end), matrix in groups]
    product = torch.cat([*products, rows.new_zeros(len(rows) - ends[-1], matrices.shape[-1])])
    return (product if bias is None else product + bias).to(out_dtype or product.dtype)


def wide_kernel(name: str, arguments: Any) -> Callable[..., torch.Tensor] | None:  # noqa: ANN401  torch's own
    """Return what computes the same in float64 where torch does not, None where it does."""
    if name not in ("grouped_mm", "_grouped_mm"):
        return None
    is_double = all(isinstance(a, torch.Tensor) and a.dtype is torch.float64 for a in arguments[:2])
    is_of_groups = is_double and [a.ndim for a in arguments[:2]] == [2, 3]
    return _multiply_groups if is_of_groups else None
