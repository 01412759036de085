"""How much memory an inverse will take, told before anything is allocated.

The estimates count arrays of the size of the symbol and of the images; the counts were fitted to peaks measured in
processes of their own, and a test keeps them within a factor of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from deconv_cli.errors import TooLargeError
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.correlation import prefers_fft
from deconv_cli.operators.geometry import Geometry
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers import direct, iterative, strip
from deconv_cli.vocabulary import format_memory

# Symbols in double precision that are alive at once while they are factored, by the larger number of channels; with a
# penalty, Gram matrices are among them.
N_SYMBOLS = 3
N_SYMBOLS_PENALIZED = 5
# Images with the channels of input and output that an application keeps at once: in closed form, or iterated.
N_IMAGES_IN_CLOSED_FORM = 3
N_IMAGES_ITERATED = 8


@dataclass(frozen=True)
class MemoryEstimate:
    """What one method takes at its peak.

    Attributes:
        n_bytes_built: while the inverse is built, and at most after that.
        n_bytes_per_image: for each image that it is applied to at once.
        n_basis_numbers: numbers in a vector of the basis that GMRES keeps, for each image; 0 where it does not run.
        n_bytes_per_number: of these numbers.
    """

    n_bytes_built: int
    n_bytes_per_image: int
    n_basis_numbers: int = 0
    n_bytes_per_number: int = 0

    def n_bytes(self, n_images: int = 1) -> int:
        """Add up the peak for a batch."""
        n_basis = n_images * self.n_basis_numbers
        n_vectors = strip.n_kept_vectors(n_basis) + 1 if n_basis else 0
        basis = n_vectors * n_basis * self.n_bytes_per_number
        return self.n_bytes_built + n_images * self.n_bytes_per_image + basis


def estimate_memory(method: str, taps: Tensor, geometry: Geometry, settings: ResolvedSettings) -> MemoryEstimate:
    """Estimate what a method takes.

    Args:
        method: one that covers the problem.
        taps: shape `(C_out, C_in, kH, kW)`, in the precision of the arithmetic.
        geometry: the sizes.
        settings: what is asked for.
    """
    n_outputs, n_inputs, height, width = taps.shape
    n_pixels = math.prod(geometry.extended_size)
    images = taps.itemsize * n_pixels * (n_outputs + n_inputs)
    # Half as many complex numbers of sixteen bytes as pixels.
    n_symbols = N_SYMBOLS_PENALIZED if settings.lam > 0 else N_SYMBOLS
    symbols = n_symbols * 8 * n_pixels * max(n_outputs, n_inputs) ** 2
    if prefers_fft(taps, geometry.extended_size):
        blurring, unfolded = 2 * taps.itemsize * n_pixels * n_outputs * n_inputs, 0
    else:
        blurring, unfolded = 0, taps.itemsize * n_pixels * height * width * max(n_outputs, n_inputs)
    if method == "fft":
        return MemoryEstimate(symbols + blurring, N_IMAGES_IN_CLOSED_FORM * images + unfolded)
    if method == "direct":
        cost = direct.estimate_cost(
            geometry, as_rule(settings.boundary), lam=settings.lam, n_outputs=n_outputs, n_inputs=n_inputs
        )
        return MemoryEstimate(cost.n_bytes + blurring, N_IMAGES_ITERATED * images + unfolded)
    lam, penalty, is_iterated_by_strip = settings.lam, settings.penalty, method == "strip"
    if method == "iterative" and settings.lam == 0:
        # Preconditioned by the strip in double precision, where there are outputs enough.
        sizes = zip(geometry.output_size, geometry.image_size, strict=True)
        is_iterated_by_strip = n_outputs >= n_inputs and all(o >= i for o, i in sizes)
        lam, penalty = iterative.PRECONDITIONER_LAMBDA, "identity"
        symbols = symbols * N_SYMBOLS_PENALIZED // N_SYMBOLS if is_iterated_by_strip else 0
    n_basis = itemsize = 0
    if is_iterated_by_strip:
        n_basis = strip.n_gmres_unknowns(
            geometry, as_rule(settings.boundary), lam=lam, penalty=penalty, n_outputs=n_outputs, n_inputs=n_inputs
        )
        itemsize = taps.itemsize if strip.runs_in_own_precision(lam) else to_float64(taps[:0]).itemsize
    return MemoryEstimate(symbols + blurring, N_IMAGES_ITERATED * images + unfolded, n_basis, itemsize)


def free_memory(device: torch.device) -> int:
    """Tell how many bytes are free where the arithmetic runs."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_memory(
    method: str,
    estimate: MemoryEstimate,
    taps: Tensor,
    geometry: Geometry,
    *,
    max_memory: int | None,
    n_images: int | None = None,
) -> None:
    """Refuse what cannot fit.

    Args:
        method: what is about to run.
        estimate: what it takes.
        taps: the kernel, in the precision of the arithmetic.
        geometry: the sizes.
        max_memory: bytes that may be used; by default what is free.
        n_images: images that an inverse, built already, is about to be applied to; `None` before it is built.

    Raises:
        TooLargeError: it does not fit.
    """
    is_built = n_images is not None
    needed = estimate.n_bytes(1 if n_images is None else n_images)
    if max_memory is not None:
        budget, source = max_memory, "that max_memory allows"
    else:
        budget, source = free_memory(taps.device), "that are free"
        needed -= estimate.n_bytes_built if is_built else 0
    if needed <= budget:
        return
    advice = ["a smaller image"]
    if is_built and n_images != 1:
        advice.insert(0, "fewer images at a time")
    if taps.dtype == torch.float64 and method != "direct":
        advice.insert(0, "float32")
    if method == "direct":
        advice.insert(0, "method auto or iterative")
    size = "×".join(map(str, geometry.image_size))
    count = f"{n_images} images" if is_built and n_images != 1 else "an image"
    raise TooLargeError(
        f"method {method} needs about {format_memory(needed)} for {count} of {size} pixels and a kernel of shape "
        f"{tuple(taps.shape)}, more than the {format_memory(budget)} {source}; use {' or '.join(advice)}."
    )
