"""The base of every map from outputs back to images, and of priors other than a quadratic penalty.

To add a prior, write one subclass and `deconv_cli.PRIORS.register("name", MyPrior())`: it can then be given as `prior`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, TooLargeError, UsageError, check_type
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import image_axes
from deconv_cli.operators.boundary_rules import as_rule, wrap
from deconv_cli.operators.linear_operator import check_tensor
from deconv_cli.operators.spectrum import Spectrum
from deconv_cli.operators.synchronize import free_memory
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.solution import Progress, Solution
from deconv_cli.solvers.solver import Choice, Cost
from deconv_cli.vocabulary import COUNTED, Size, format_memory, format_size

# Samples between these sizes have squares, and squares of residuals, that float32 can hold.
ORDINARY = (1e-8, 1e8)


class Estimator(ABC):
    """A map from outputs of a convolution back to images of one size: built once, applied to many outputs.

    The kernel is canonical, in the dtype and on the device of the arithmetic. One that does not fit the size, or
    reaches too far outside it, is a `ShapeError`.

    Attributes:
        geometry: the sizes.
        operator: A, under its true boundary; its taps do not change with the caller's.
        choice: the method, and why it was taken.
        cost: memory and operations.
        tolerance: the certificate at which an iteration stops.
        lam: λ of the penalty λσ²max‖Lx‖²; `None` without such a penalty.
        penalty: which L; `None` without one.
    """

    choice: Choice
    cost: Cost
    tolerance: float
    lam: float | None = None
    penalty: str | None = None

    def __init__(self, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> None:
        check_type(kernel, Kernel, "the kernel")
        check_type(image_size, tuple, "the size of the images")
        check_type(settings, ResolvedSettings, "the settings")
        boundary = wrap(as_rule(settings.boundary), settings.wraps)
        kernel = kernel.with_layer(settings.layer)
        self.kernel, self.settings = kernel, replace(settings, dimensions=kernel.n_axes)
        self.geometry = kernel.geometry(image_size, settings.padding)
        self.geometry.check_boundary(boundary)
        # What is built here serves no graph, and must not change when the caller's taps do.
        self.operator = kernel.detached().convolution(self.geometry, boundary)

    @abstractmethod
    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for `y`, shape `(C_out, *output_size)` or `(B, C_out, *output_size)`.

        The value is in the operators' arrangement (see `frame`). `progress` is called after every iteration.

        Raises:
            ShapeError: `y` is not an output of this convolution.
            UsageError: `y` has another dtype or device than the arithmetic.
            TooLargeError: the batch does not fit the memory.
            MalformedInputError: `y` holds NaN or infinite values.
        """

    @property
    def spectrum(self) -> Spectrum:
        """The extreme singular values of the kernel's symbol; of a field, those of the kernel with the largest."""
        return self.operator.spectrum

    @property
    def n_dims(self) -> int:
        """Axes of one image: its channels and those of space."""
        return len(self.operator.input_shape)

    def arrange(self, y: Tensor) -> Tensor:
        """Check outputs and arrange their channels for the operators."""
        check_tensor(y, "the output")
        if y.dtype != self.kernel.taps.dtype or y.device != self.kernel.taps.device:
            raise UsageError(
                f"this inverse was built for {self.kernel.taps.dtype} on {self.kernel.taps.device}, but the output is "
                f"{y.dtype} on {y.device}; convert one of them."
            )
        arranged = self.kernel.split(y, are_outputs=True)
        if tuple(arranged.shape[1 - self.n_dims :]) != self.geometry.output_size:
            raise ShapeError(
                f"an image of {self.geometry.image_size} gives an output of {self.geometry.output_size}, "
                f"but the output has shape {tuple(y.shape)}."
            )
        return arranged

    def data_of(self, y: Tensor) -> Tensor:
        """Check and arrange outputs for a solver without derivatives.

        Raises:
            UsageError: `y` or the kernel requires a gradient.
            MalformedInputError: `y` holds NaN or infinite values.
        """
        if torch.is_grad_enabled() and (y.requires_grad or self.kernel.taps.requires_grad):
            raise UsageError(
                "this estimate has no derivative with respect to data and kernel, but one of them requires a "
                "gradient; detach them, or use the quadratic prior."
            )
        arranged = self.arrange(y.detach())
        check_finite(arranged)
        return arranged

    def frame(self, value: Tensor) -> Tensor:
        """Cut a solution's value to the image's frame and restore its channel axis."""
        return self.kernel.join(self.operator.crop_to_frame(value))

    def n_images(self, arranged: Tensor) -> int:
        """Count the images of an arranged batch."""
        return math.prod(arranged.shape[: arranged.ndim - self.n_dims])

    def check_memory(self, cost: Cost, n_images: int | None = None) -> None:
        """Refuse, by `TooLargeError`, to build, or to apply to `n_images` images, if that does not fit the memory."""
        method, taps, max_memory = self.choice.method, self.kernel.taps, self.settings.max_memory
        is_built, is_batch = n_images is not None, n_images not in (None, 1)
        needed = cost.n_bytes(n_images or 1)
        if max_memory is not None:
            budget, source = max_memory, f"that max_memory allows {COUNTED}"
        else:
            budget, source = free_memory(taps.device), "that are free"
            needed = (n_images or 1) * cost.n_bytes_per_image if is_built else needed
        if needed <= budget:
            return
        advice = ["a smaller image"] if max_memory is None else ["a larger max_memory", "a smaller image"]
        if is_batch:
            advice.insert(0, "fewer images at a time")
        if method == "direct":
            advice.insert(0, "method auto or iterative")
        elif taps.dtype == torch.float64:
            advice.insert(0, "float32")
        count, size = f"{n_images} images" if is_batch else "an image", format_size(self.geometry.image_size)
        raise TooLargeError(
            f"method {method} needs about {format_memory(needed)} for {count} of {size} pixels and a kernel of shape "
            f"{tuple(taps.shape)}, more than the {format_memory(budget)} {source}; use {' or '.join(advice)}."
        )


def to_unit(data: Tensor, n_dims: int) -> tuple[Tensor, Tensor | None]:
    """Divide each image by a power of two if its squares would leave the range of its type.

    Returns:
        The quotient and the powers, shape `(*batch, 1, …, 1)`; the data themselves and `None` in ordinary cases.
    """
    axes = image_axes(n_dims - 1)
    peak = torch.maximum(data.amax(dim=axes, keepdim=True), -data.amin(dim=axes, keepdim=True))
    is_odd = (peak > 0) & torch.isfinite(peak) & ((peak < ORDINARY[0]) | (peak > ORDINARY[1]))
    if not synchronize.holds_anywhere(is_odd):
        return data, None
    unit = torch.where(is_odd, torch.exp2(torch.log2(torch.where(is_odd, peak, 1)).floor()), 1)
    return data / unit, unit


def common_unit(data: Tensor) -> float:
    """Find the power of two to divide a batch by if its squares would leave the range of its type; else 1."""
    peak = max(abs(end) for end in synchronize.as_numbers(torch.stack(data.aminmax())))
    is_odd = 0 < peak < math.inf and not ORDINARY[0] <= peak <= ORDINARY[1]
    return 2.0 ** math.floor(math.log2(peak)) if is_odd else 1.0


def check_finite(y: Tensor) -> None:
    """Refuse outputs that hold NaN or infinite values, or values whose squares are beyond double precision."""
    size = sum(abs(end) for end in synchronize.as_numbers(torch.stack(y.detach().aminmax()))) if y.numel() else 0.0
    if not math.isfinite(size * size):
        raise MalformedInputError(
            "the output to invert holds values that are NaN or infinite, or whose squares are infinite; replace them "
            "first, since one of them spoils the whole result."
        )


DataEstimate = Literal["noise", "noise map", "gain", "weight"]
"""What is estimated from the data: the standard deviation of the noise, the same for every sample, units of the samples
a count, or the weight of the total variation."""


class Prior(ABC):
    """An objective, with the estimator that minimizes it."""

    def needs(self, settings: ResolvedSettings) -> DataEstimate | None:
        """Return which number must be estimated from the data before `build`; `None` if none is needed."""
        return None

    @abstractmethod
    def build(
        self, kernel: Kernel, image_size: Size, settings: ResolvedSettings, estimate: float | Tensor | None = None
    ) -> Estimator:
        """Build the estimator; `estimate` is the number that `needs` names, `None` if the data do not show it.

        A kernel that does not fit the size is a `ShapeError`, settings that the prior cannot follow are a `UsageError`,
        and a lack of memory is a `TooLargeError`.
        """
