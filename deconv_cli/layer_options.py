"""Stride, dilation, groups and direction of a layer, in torch's words.

Nothing here imports torch. A layer relates two grids along each axis, `coarse[o] = Σ_t K[t]·fine[stride·o + dilation·t
− before]`. A convolution goes from the fine grid to the coarse one, a transposed convolution back.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import Size, is_whole, shortened

PerAxis = int | Size
"""One whole number for all axes of space, or one for each."""


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Stride, dilation, groups and the rest, as `torch.nn.Conv2d` and `torch.nn.ConvTranspose2d` take them.

    Attributes:
        stride: pixels of the fine grid from one pixel of the coarse grid to the next.
        dilation: pixels from one tap to the next.
        groups: sets of channels that the kernel does not mix with one another.
        transposed: go from the coarse grid to the fine one; the taps have then the shape `(C_in, C_out / groups, *k)`.
        output_padding: of a transposed convolution, pixels by which its output is larger than the smallest possible.

    Raises:
        UsageError: a value that torch takes for none of these.
    """

    stride: PerAxis = 1
    dilation: PerAxis = 1
    groups: int = 1
    transposed: bool = False
    output_padding: PerAxis = 0

    def __post_init__(self) -> None:
        for name, least in (("stride", 1), ("dilation", 1), ("groups", 1), ("output_padding", 0)):
            object.__setattr__(self, name, _whole(getattr(self, name), name, least, is_single=name == "groups"))
        if not isinstance(self.transposed, bool):
            raise UsageError(f"transposed must be True or False, but is {self.transposed!r}.")
        if not self.transposed and _largest(self.output_padding) > 0:
            raise UsageError(
                f"output_padding is {self.output_padding}, but it is for transposed convolutions only; leave it out, "
                "or add transposed=True."
            )

    @property
    def is_plain(self) -> bool:
        """Whether the kernel is slid by single pixels over all channels, and nothing else."""
        steps = (self.stride, self.dilation)
        return not self.transposed and self.groups == 1 and all(_largest(step) == 1 for step in steps)

    def over_axes(self, n_axes: int) -> AxisOptions:
        """Expand each number to all axes of space; numbers that do not fit raise a `UsageError`."""
        stride, dilation, output_padding = (
            _expanded(getattr(self, name), name, n_axes) for name in ("stride", "dilation", "output_padding")
        )
        for added, step, spread in zip(output_padding, stride, dilation, strict=True):
            if added >= max(step, spread) > 0 and added > 0:
                raise UsageError(
                    f"output_padding must be smaller than the stride or the dilation, as in torch, but is {added}, "
                    f"while they are {step} and {spread}."
                )
        return AxisOptions(stride, dilation, output_padding)

    def record(self) -> dict[str, Any]:
        """Return the differences from a plain convolution, by torch's words, for JSON."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def describe(self) -> str:
        """Write the differences from a plain convolution: `stride 2, groups 4`."""
        written = {name: ",".join(map(str, v)) if isinstance(v, list) else v for name, v in self.record().items()}
        return ", ".join(
            "transposed" if value is True else f"{name.replace('_', ' ')} {value}" for name, value in written.items()
        )


@dataclass(frozen=True)
class AxisOptions:
    """Stride, dilation and output padding, one number for each axis of space."""

    stride: Size
    dilation: Size
    output_padding: Size


def _whole(value: object, name: str, least: int, *, is_single: bool) -> PerAxis:
    """Turn whole numbers of any library into plain ones; a tuple of equal numbers stays one number for each axis."""
    numbers: list[Any] = list(value) if isinstance(value, tuple | list) and not is_single else [value]
    if not numbers or not all(is_whole(n) and int(n) >= least for n in numbers):
        wanted = "a whole number" if is_single else "a whole number, or one for each axis,"
        raise UsageError(f"{name} must be {wanted} from {least} on, but is {shortened(repr(value))}.")
    plain = tuple(int(n) for n in numbers)
    return plain if isinstance(value, tuple | list) else plain[0]


def _expanded(value: PerAxis, name: str, n_axes: int) -> Size:
    numbers = value if isinstance(value, tuple) else (value,)
    if len(numbers) == 1:
        return numbers * n_axes
    if len(numbers) != n_axes:
        raise UsageError(
            f"{name} must be a whole number or one for each of the {n_axes} axes of space, but is {value!r}."
        )
    return numbers


def _largest(value: PerAxis) -> int:
    return max(value) if isinstance(value, tuple) else value


PLAIN = LayerOptions()
"""A plain convolution."""
TRANSPOSED = LayerOptions(transposed=True)
"""A plain transposed convolution."""
