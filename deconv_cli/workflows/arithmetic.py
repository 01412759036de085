"""The precision, the device, the shape and the light in which data are computed with, and checks of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_rules import choose_by_rule
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.errors import MalformedInputError, ShapeError, UsageError, check_type
from deconv_cli.kernels.blind.blurred_picture import MAX_SATURATED
from deconv_cli.kernels.kernel import AXIS_NAMES, Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators.axes import crop
from deconv_cli.operators.linear_operator import check_tensor
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import (
    ROUNDING_NOISE,
    ArithmeticDType,
    DeviceChoice,
    LambdaRule,
    Light,
    Size,
    is_whole,
    parse_word,
)


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


RECORDED = "recorded in the file by deconv forward"
_CLEARLY = 2.5
"""Factor between the whiteness of two residuals at which one light is called better. The wrong light was whiter by at
most 1.6 on 6 photographs, under three kernels, and on 16 others, under two kernels and two sizes of noise, as JPEG."""
_TILE, _LARGEST_KERNEL = 256, 64
_FLAT, _BYTE = 4.0, 255.0
"""Times the noise of rounding to bytes: a tile without more contrast says nothing about its light."""


@dataclass(frozen=True, eq=False)
class ChosenLight:
    """What a convolution acts on.

    Attributes:
        light: light, or the samples as they are stored.
        reason: the reason, a sentence without its full stop.
        curve: the tone curve to undo; `None` for stored samples.
        is_assumed: whether samples that may have a tone curve are taken as linear in light.
    """

    light: Light
    reason: str
    curve: ToneCurve | None
    is_assumed: bool = False

    def to_light(self, stored: Tensor, dtype: ArithmeticDType | str | None = None) -> Tensor:
        """Undo the curve, if there is one, in the precision of the arithmetic; shape `(*, C, H, W)`."""
        if self.curve is None:
            return stored
        return self.curve.to_light(stored.to(pick_dtype(dtype, stored, stored.device)))

    def to_stored(self, light: Tensor) -> Tensor:
        """Apply the curve again, if there is one; shape `(*, C, H, W)`."""
        return light if self.curve is None else self.curve.to_stored(light)


def caution_light(stored: Tensor, kernel: Kernel, curve: ToneCurve, *, is_light: bool) -> str | None:
    """Return a sentence if the residual of a tile of stored samples `(*batch, C, H, W)` is whiter in the other light.

    Frequencies that the kernel removes hold only noise, unless a tone curve came after the blur or light was cut off.
    """
    size = stored.shape[-2:]
    if (
        not kernel.shared
        or kernel.field is not None
        or kernel.n_axes != 2
        or max(kernel.size) > min(_LARGEST_KERNEL, *size)
    ):
        return None
    window = tuple(min(n, _TILE) for n in size)
    start = tuple((n - kept) // 2 for n, kept in zip(size, window, strict=True))
    whole = stored.detach().reshape(-1, *stored.shape[-3:])[0].float()
    is_saturated = float((whole >= curve.white).any(0).float().mean()) > MAX_SATURATED
    images = crop(whole, start, window)
    if is_saturated or float(images.std()) < _FLAT * ROUNDING_NOISE * curve.white / _BYTE:
        return None
    middle, found = images.shape[0] // 2, {}
    kernel = replace(kernel, taps=kernel.taps.detach().to(images))
    extension = PeriodicExtension(kernel, window, boundary="unknown", penalty="gradient")
    for name, tile in ((Light.STORED, images), (Light.LINEAR, curve.to_light(images))):
        data = tile[middle : middle + 1]
        lam = choose_by_rule(LambdaRule.GCV, extension.initial(data), 0.0).chosen
        found[name] = min(choose_by_rule(LambdaRule.WHITENESS, extension.continued(data, lam), 0.0).values)
    light, other = (Light.LINEAR, Light.STORED) if is_light else (Light.STORED, Light.LINEAR)
    if not found[light] > _CLEARLY * found[other] > 0:  # NaN where the middle is empty
        return None
    places = {Light.STORED: "on the samples as they are stored", Light.LINEAR: "in linear light"}
    whiter = f"if the kernel acts {places[other]}, the residual is {found[light] / found[other]:.2g} times whiter"
    return f'{whiter}: the blur probably acted there; try light="{other}"'


def choose_light(wanted: str, curve: ToneCurve | None, recorded: Light | None = None) -> ChosenLight:
    """Decide whether a convolution acts on light or on stored samples, by the setting, the record, then the curve."""
    if curve is not None:
        check_type(curve, ToneCurve, "tone_curve")
    if wanted != "auto":
        light, why = Light(wanted), "given by the user"
    elif recorded is not None:
        light, why = recorded, RECORDED
    elif curve is not None and curve.is_default:
        light, why = Light.LINEAR, "optical blur acts on light"
    elif curve is None:
        light, why = Light.STORED, "no tone curve is known, so they count as light"
    else:
        light, why = Light.STORED, "without an ICC profile they count as light"
    if light is Light.STORED:
        is_assumed = wanted == "auto" and recorded is None and curve is not None
        return ChosenLight(light, f"in the samples as they are stored: {why}", None, is_assumed)
    if curve is None:
        raise UsageError(
            "light=linear needs the tone curve of the samples, which is not known: they are not a picture of 8 or 16 "
            "bits in gray or RGB, or lack the ICC profile that deconv forward used; use light=stored."
        )
    origin = f" ({curve.origin})" if curve.origin else ""
    return ChosenLight(light, f"in linear light, undone from {curve.name}{origin}: {why}", curve)
