"""Checks of tensors, and the precision, the device and the shape in which they are computed with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.kernel import AXIS_NAMES, Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators.linear_operator import check_tensor
from deconv_cli.vocabulary import ArithmeticDType, DeviceChoice, Size, is_whole, parse_word


def pick_device(choice: DeviceChoice | str) -> torch.device:
    """Find the device of a word: `auto` takes CUDA if there is one, else the CPU, but not MPS, which has no float64."""
    choice = DeviceChoice(choice)
    if choice is DeviceChoice.AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if choice is DeviceChoice.CUDA and not torch.cuda.is_available():
        raise UsageError('torch sees no CUDA device here, but device is cuda; use device="cpu".')
    if choice is DeviceChoice.MPS and not torch.backends.mps.is_available():
        raise UsageError('torch sees no Apple GPU here, but device is mps; use device="cpu".')
    return torch.device(choice.value)


def pick_dtype(choice: ArithmeticDType | str | torch.dtype | None, data: Tensor, device: torch.device) -> torch.dtype:
    """Find the precision of the arithmetic: the given one, else float64 for float64 data and float32 for all others.

    An unknown precision, or one that the device does not have, is a `UsageError`.
    """
    if choice is None:
        dtype = torch.float64 if data.dtype == torch.float64 and device.type != "mps" else torch.float32
    elif isinstance(choice, torch.dtype):
        dtype = choice
    else:
        word = parse_word(ArithmeticDType, choice, "dtype")
        dtype = {ArithmeticDType.FLOAT32: torch.float32, ArithmeticDType.FLOAT64: torch.float64}[word]
    if dtype not in (torch.float32, torch.float64):
        raise UsageError(f"the arithmetic runs in float32 or float64, but dtype is {dtype}.")
    if dtype == torch.float64 and device.type == "mps":
        raise UsageError('an Apple GPU has no float64; use dtype="float32" or device="cpu".')
    return dtype


def as_any_kernel(
    kernel: Tensor | KernelField, device: torch.device, dtype: torch.dtype, dimensions: int | None = None
) -> Kernel:
    """Bring a kernel of any shape, or a field, to the device and precision of the arithmetic, and check it."""
    check_kernel(kernel)
    return Kernel.of_any(kernel.to(device), dtype, dimensions=dimensions)


def check_single_kernel(kernel: Tensor | KernelField) -> Tensor:
    """Refuse a kernel that varies over the frame, by `UsageError`, and whatever `check_kernel` refuses."""
    if isinstance(kernel, KernelField):
        raise UsageError(
            "only forward and invert take a kernel that varies over the frame; here give the kernel of one place, "
            "such as field.taps[0, 0]."
        )
    check_kernel(kernel)
    return kernel


def check_kernel(kernel: Tensor | KernelField) -> None:
    """Refuse anything but a real tensor or a `KernelField`, by `UsageError` or `MalformedInputError`."""
    if isinstance(kernel, KernelField):
        return
    check_tensor(kernel, "the kernel")
    # Before the cast, which would drop the imaginary part.
    if kernel.is_complex():
        raise MalformedInputError(f"a kernel must be real, but is {kernel.dtype}.")


_SIZES = {
    1: "a size must be a length, a tuple of one positive whole number",
    2: "a size must be a height and a width, two positive whole numbers of pixels",
    3: "a size must be a depth, a height and a width, three positive whole numbers of pixels",
}


def as_size(size: object, n_axes: int = 2) -> Size:
    """Read a size, a positive whole number of pixels for each axis of space; anything else raises a `UsageError`."""
    if isinstance(size, tuple | list) and len(size) == n_axes and all(is_whole(n) and int(n) > 0 for n in size):
        return tuple(int(n) for n in size)
    raise UsageError(f"{_SIZES[n_axes]}, but is {size!r}.")


@dataclass(frozen=True)
class Planes:
    """How a batch of stacks is split into planes, or lines, for a kernel of fewer axes.

    Attributes:
        batch: axes ahead of the channels, none or one.
        numbered: the axes of space that the kernel does not span: `(D,)` for a 2-D kernel on a stack.
        n_axes: the axes of space that it spans.
    """

    batch: Size
    numbered: Size
    n_axes: int

    @classmethod
    def of(cls, images: Tensor, kernel: Kernel, dimensions: int | None) -> Planes | None:
        """Return how images `(C, *size)` or `(B, C, *size)` are split; `None` if the kernel spans all their axes.

        `dimensions` are the axes of space of the images; `None` for those of the kernel. Images with other axes are a
        `ShapeError`.
        """
        n_axes = kernel.n_axes
        n_numbered = 0 if dimensions is None else dimensions - n_axes
        if n_numbered <= 0:
            return None
        assert dimensions is not None
        if images.ndim not in (dimensions + 1, dimensions + 2):
            axes = ", ".join(("C", *AXIS_NAMES[-dimensions:]))
            raise ShapeError(
                f"an image tensor of {dimensions} dimensions must have shape ({axes}) or (B, {axes}), but has "
                f"{tuple(images.shape)}; add the missing axes, for example image[None]."
            )
        channels = images.ndim - dimensions - 1
        return cls(tuple(images.shape[:channels]), tuple(images.shape[channels + 1 : -n_axes]), n_axes)

    def split(self, images: Tensor) -> Tensor:
        """Make a batch of the planes: `(*batch, C, *numbered, *size)` to `(n, C, *size)`."""
        channels = len(self.batch)
        last = images.movedim(channels, channels + len(self.numbered))
        return last.reshape(-1, *last.shape[-self.n_axes - 1 :])

    def join(self, planes: Tensor) -> Tensor:
        """Undo `split`, for planes of any size and number of channels."""
        channels = len(self.batch)
        stacked = planes.reshape(*self.batch, *self.numbered, *planes.shape[1:])
        return stacked.movedim(channels + len(self.numbered), channels)
