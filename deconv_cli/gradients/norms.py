"""Norms and differences of tensors of any type, complex ones included."""

from __future__ import annotations

import torch


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to double precision, complex where it is complex; sparse ones are made dense."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return dense.to(torch.complex128 if dense.is_complex() else torch.float64)


def norm_of(tensor: torch.Tensor) -> float:
    """Compute the Euclidean norm, of complex numbers by their magnitudes."""
    return float(to_float64(tensor).norm())
