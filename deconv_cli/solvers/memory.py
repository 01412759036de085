"""Whether an inverse fits the memory, found out before anything is allocated."""

from __future__ import annotations

import psutil
import torch

from deconv_cli.allocator import kept_bytes
from deconv_cli.errors import TooLargeError
from deconv_cli.operators.geometry import Geometry
from deconv_cli.solvers.solver import Cost
from deconv_cli.vocabulary import format_memory, format_size


def free_memory(device: torch.device) -> int:
    """Return how many bytes are free where the arithmetic runs."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) + kept_bytes()


def check_memory(
    method: str,
    cost: Cost,
    taps: torch.Tensor,
    geometry: Geometry,
    *,
    max_memory: int | None,
    n_images: int | None = None,
) -> None:
    """Refuse what cannot fit.

    Args:
        method: what is about to run.
        cost: what it takes.
        taps: the kernel, shape `(C_out, C_in, *k)`, in the precision of the arithmetic.
        geometry: the sizes.
        max_memory: bytes that may be used; by default what is free.
        n_images: images that an inverse, built already, is about to be applied to; `None` before it is built.

    Raises:
        TooLargeError: it does not fit.
    """
    is_built = n_images is not None
    needed = cost.n_bytes(1 if n_images is None else n_images)
    if max_memory is not None:
        budget, source = max_memory, "that max_memory allows"
    else:
        budget, source = free_memory(taps.device), "that are free"
        needed -= cost.n_bytes_built if is_built else 0
    if needed <= budget:
        return
    advice = ["a smaller image"] if max_memory is None else ["a larger max_memory", "a smaller image"]
    if is_built and n_images != 1:
        advice.insert(0, "fewer images at a time")
    if method == "direct":
        advice.insert(0, "method auto or iterative")
    elif taps.dtype == torch.float64:
        advice.insert(0, "float32")
    count = f"{n_images} images" if is_built and n_images != 1 else "an image"
    raise TooLargeError(
        f"method {method} needs about {format_memory(needed)} for {count} of {format_size(geometry.image_size)} pixels "
        f"and a kernel of shape {tuple(taps.shape)}, more than the {format_memory(budget)} {source}; "
        f"use {' or '.join(advice)}."
    )
