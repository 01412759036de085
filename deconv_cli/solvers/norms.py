"""Inner products and norms of images, one number for each image of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

# Axes of what is summed at once: those of an image.
IMAGE_DIMS = 3


def inner(a: Tensor, b: Tensor, n_dims: int) -> Tensor:
    """Compute the inner product over the last axes, summed in double precision where the device has it.

    Args:
        a: shape `(*batch, *element)`.
        b: of the shape of `a`.
        n_dims: axes of one element: for an image its channels and its axes of space.

    Returns:
        Shape `(*batch,)`.
    """
    if n_dims > IMAGE_DIMS:
        # Plane by plane: the products of a stack, and what they are in double precision, take three times its memory.
        planes = zip(a.unbind(1 - n_dims), b.unbind(1 - n_dims), strict=True)
        return torch.stack([inner(p, q, n_dims - 1) for p, q in planes]).sum(dim=0)
    product = a * b
    if n_dims == 0:
        return product.to(accumulation_dtype(a))
    return product.sum(dim=tuple(range(-n_dims, 0)), dtype=accumulation_dtype(a))


def norm(a: Tensor, n_dims: int) -> Tensor:
    """Compute the Euclidean norm over the last `n_dims` axes, shape `(*batch,)`."""
    return inner(a, a, n_dims).sqrt()


def as_factor(numbers: Tensor, like: Tensor, n_dims: int) -> Tensor:
    """Shape numbers `(*batch,)` to multiply elements of `n_dims` axes by, in the dtype of `like`."""
    return numbers.to(like.dtype).reshape(*numbers.shape, *[1] * n_dims)


def relative(size: Tensor, scale: Tensor) -> Tensor:
    """Divide norms, leaving those as they are whose scale is zero."""
    return torch.where(scale > 0, size / scale.clamp_min(1e-300), size)


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, giving 0 where the denominator is not positive: for images that are solved already."""
    return torch.where(denominator > 0, numerator / denominator.clamp_min(1e-300), 0)


def accumulation_dtype(a: Tensor) -> torch.dtype:
    """Return the widest real type in which the device can add up."""
    return a.dtype if a.device.type == "mps" else torch.float64
