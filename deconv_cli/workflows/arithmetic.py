"""In which precision and on which device a workflow computes."""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators import synchronize
from deconv_cli.operators.linear_operator import check_tensor
from deconv_cli.vocabulary import ArithmeticDType, DeviceChoice, Size, is_whole, parse_word


def pick_device(choice: DeviceChoice | str) -> torch.device:
    """Find the device that a word stands for.

    `auto` takes CUDA where it is there, else the CPU. MPS, which has no float64, is only taken when asked for.

    Raises:
        UsageError: the device is not there.
    """
    choice = DeviceChoice(choice)
    if choice is DeviceChoice.AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if choice is DeviceChoice.CUDA and not torch.cuda.is_available():
        raise UsageError('device cuda was asked for, but torch sees no CUDA device here; use device="cpu".')
    if choice is DeviceChoice.MPS and not torch.backends.mps.is_available():
        raise UsageError('device mps was asked for, but torch sees no Apple GPU here; use device="cpu".')
    return torch.device(choice.value)


def pick_dtype(choice: ArithmeticDType | str | torch.dtype | None, data: Tensor, device: torch.device) -> torch.dtype:
    """Find the precision of the arithmetic.

    It is the one asked for, else float64 for float64 data and float32 for all others.

    Raises:
        UsageError: the precision is unknown, or the device does not have it.
    """
    if choice is None:
        dtype = torch.float64 if data.dtype == torch.float64 and device.type != "mps" else torch.float32
    elif isinstance(choice, torch.dtype):
        dtype = choice
    else:
        word = parse_word(ArithmeticDType, choice, "dtype")
        dtype = {ArithmeticDType.FLOAT32: torch.float32, ArithmeticDType.FLOAT64: torch.float64}[word]
    if dtype not in (torch.float32, torch.float64):
        raise UsageError(f"the arithmetic runs in float32 or float64, but {dtype} was asked for.")
    if dtype == torch.float64 and device.type == "mps":
        raise UsageError('an Apple GPU has no float64; use dtype="float32" or device="cpu".')
    return dtype


def as_kernel(kernel: Tensor, device: torch.device, dtype: torch.dtype, dimensions: int | None = None) -> Kernel:
    """Bring a kernel to the device and into the precision of the arithmetic, and check it.

    Args:
        kernel: of shape `(*k)` or `(C_out, C_in, *k)`.
        device: of the arithmetic.
        dtype: of the arithmetic.
        dimensions: axes of space of the images, where the kernel's own do not tell (see `Kernel.from_tensor`).

    Raises:
        UsageError: it is no tensor, or varies over the frame.
        ShapeError: it has another number of axes.
        MalformedInputError: it is complex, empty, zero or not finite.
    """
    check_single_kernel(kernel)
    return Kernel.from_tensor(kernel.to(device), dtype, dimensions=dimensions)


def as_any_kernel(
    kernel: Tensor | KernelField, device: torch.device, dtype: torch.dtype, dimensions: int | None = None
) -> Kernel:
    """Do the same for kernels that may be one for each channel, shape `(C, *k)`, or vary over the frame."""
    check_kernel(kernel)
    return Kernel.of_any(kernel.to(device), dtype, dimensions=dimensions)


def check_single_kernel(kernel: Tensor | KernelField) -> Tensor:
    """Refuse a kernel that varies over the frame, and what is no kernel by its type; gives the kernel itself.

    Raises:
        UsageError: it is no tensor.
        MalformedInputError: it is complex.
    """
    if isinstance(kernel, KernelField):
        raise UsageError(
            "a kernel that varies over the frame is taken by forward and invert alone; here give the kernel of one "
            "place, such as field.taps[0, 0]."
        )
    check_kernel(kernel)
    return kernel


def check_kernel(kernel: Tensor | KernelField) -> None:
    """Refuse what is no kernel by its type.

    Raises:
        UsageError: it is neither a tensor nor a `KernelField`.
        MalformedInputError: it is complex.
    """
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
    """Read a size in pixels, one number for each axis of space.

    Raises:
        UsageError: it is not so many positive whole numbers.
    """
    if isinstance(size, tuple | list) and len(size) == n_axes and all(is_whole(n) and int(n) > 0 for n in size):
        return tuple(int(n) for n in size)
    raise UsageError(f"{_SIZES[n_axes]}, but is {size!r}.")


def check_image(image: Tensor, role: str) -> None:
    """Refuse tensors that are no images.

    Args:
        image: what was given.
        role: what it is called in the message.

    Raises:
        UsageError: it is no tensor.
        MalformedInputError: the tensor is complex, or holds NaN or infinite values.
    """
    check_tensor(image, role)
    if image.is_complex():
        raise MalformedInputError(f"{role} must be real, but is {image.dtype}.")
    if image.is_floating_point() and not synchronize.are_finite(image):
        bad = torch.nonzero(~torch.isfinite(image))
        raise MalformedInputError(
            f"{role} holds {len(bad)} values that are NaN or infinite, the first at {tuple(bad[0].tolist())}; "
            "replace them first: a single one spoils a whole FFT."
        )
