"""The parts of a chain of layers: which are affine, which have an inverse, and how large the input was."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.operators.bounds import Activation, activation_of
from deconv_cli.vocabulary import Size

Named = tuple[str, nn.Module]
Layers = nn.Module | Sequence[nn.Module] | Sequence[Named]

MAX_SIZE = 2**15
"""Pixels along an axis at most, where the size of an input is looked for."""


class PartKind(StrEnum):
    """How a layer is undone."""

    AFFINE = "affine"
    ACTIVATION = "increasing activation"
    MAX_POOLING = "max pooling"
    FUNCTION = "any function"


_BY_AXES = (
    *("Conv", "ConvTranspose", "BatchNorm", "AvgPool", "AdaptiveAvgPool", "ConstantPad", "ZeroPad"),
    *("ReflectionPad", "ReplicationPad", "CircularPad"),
)
_AFFINE = {getattr(nn, f"{name}{n}d") for name in _BY_AXES for n in (1, 2, 3)} | {
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Upsample, nn.UpsamplingNearest2d),
    *(nn.UpsamplingBilinear2d, nn.Linear, nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold),
}
_MAX_POOLING = {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d}


@dataclass(frozen=True, eq=False)
class Part:
    """One layer of a chain in evaluation mode.

    Attributes:
        name: in its model.
        module: a copy without gradients, in the precision of the arithmetic.
        kind: how it is undone.
        activation: its inverse, where it is an activation.
    """

    name: str
    module: nn.Module
    kind: PartKind
    activation: Activation | None = None

    @property
    def description(self) -> str:
        """The layer in torch's words, shortened."""
        words = " ".join(repr(self.module).split())
        return words if len(words) <= 100 else f"{words[:97]}..."


def list_parts(layers: Layers, like: Tensor, eps: float) -> list[Part]:
    """Copy the layers of a chain and sort them by how they are undone.

    Args:
        layers: a module, of which an `nn.Sequential` is opened; or modules in the order in which they act, with names
            or without.
        like: has the dtype and the device of the arithmetic.
        eps: the relative distance of neighboring numbers in the type of the data.

    Raises:
        UsageError: something else than modules, or none.
    """
    given: list[Named]
    if isinstance(layers, nn.Module) or not isinstance(layers, Iterable):
        given = [("", layers)]
    else:
        given = [each if isinstance(each, tuple) else (str(n), each) for n, each in enumerate(layers)]
    wrong = next((type(module).__name__ for _, module in given if not isinstance(module, nn.Module)), None)
    if wrong is not None or not given:
        raise UsageError(f"layers must be torch modules, one at least, but there is {wrong or 'none'}.")
    copies = [(name, copy.deepcopy(module).to(like).eval().requires_grad_(False)) for name, module in given]
    return [_part(name, module, eps) for top, each in copies for name, module in _opened(top, each)]


def compose(parts: Sequence[Part]) -> nn.Sequential:
    """Give the module that runs the parts one after the other."""
    return nn.Sequential(*(part.module for part in parts))


def pools_first(parts: Sequence[Part]) -> list[Part]:
    """Let max pooling act before the activations in front of it, which gives the same where they increase."""
    ordered = list(parts)
    for n in range(1, len(ordered)):
        place = n
        while place > 0 and ordered[place].kind is PartKind.MAX_POOLING and _increases(ordered[place - 1]):
            ordered[place - 1], ordered[place] = ordered[place], ordered[place - 1]
            place -= 1
    return ordered


def input_shape_of(parts: Sequence[Part], y_shape: Size, input_size: Size | None) -> Size:
    """Find the shape `(C, *size)` of the input of a chain from that of its output.

    Args:
        parts: the chain.
        y_shape: shape of the data, with a batch axis or without.
        input_size: the pixels of the input, or channels and pixels; if not given, the size is the stride times that of
            the output, if that is possible, else the smallest possible one.

    Raises:
        ShapeError: no input gives such outputs.
        UsageError: the size does not follow from the output.
    """
    n_axes = n_axes_of(compose(parts))
    on_meta = [copy.deepcopy(part.module).to("meta") for part in parts]
    given = () if input_size is None else tuple(input_size)
    given = given * n_axes if len(given) == 1 else given
    if given and len(given) not in (n_axes, n_axes + 1):
        raise ShapeError(f"the input of this chain has {n_axes} axes of space, but input_size is {given}.")
    channels = given[0] if len(given) > n_axes else _channels(parts, y_shape[-1 - n_axes : -n_axes])
    if given:
        shape = (channels, *given[-n_axes:])
        _check_output(_shape_after(on_meta, shape), shape, y_shape)
        return shape
    return (channels, *_size_before(on_meta, channels, y_shape, n_axes))


def _opened(name: str, module: nn.Module) -> Iterator[Named]:
    """List a module, or the layers of a sequence."""
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _opened(f"{name}.{child_name}".removeprefix("."), child)


def _part(name: str, module: nn.Module, eps: float) -> Part:
    kind, activation = PartKind.FUNCTION, activation_of(module, eps)
    statistics = getattr(module, "running_mean", module) is not None  # without them each batch is its own
    if activation is not None:
        kind = PartKind.ACTIVATION
    elif type(module) in _AFFINE and statistics:
        kind = PartKind.AFFINE
    elif type(module) in _MAX_POOLING and not getattr(module, "return_indices", False):
        kind = PartKind.MAX_POOLING
    return Part(name, module, kind, activation)


def _increases(part: Part) -> bool:
    return part.activation is not None and part.activation.is_monotone


def n_axes_of(module: nn.Module) -> int:
    """Tell how many axes of space a module works on: those of its first layer that says so, else two."""
    names = (type(each).__name__ for each in module.modules())
    return next((int(name[-2]) for name in names if name[-2:] in ("1d", "2d", "3d")), 2)


def channels_of(module: nn.Module) -> int | None:
    """Find how many channels the first layer of a module takes that says so; `None` where none does."""
    for each in module.modules():
        taken = getattr(each, "in_channels", None) or getattr(each, "num_features", None)
        if taken is not None:
            return int(taken)
    return None


def _channels(parts: Sequence[Part], of_output: Size) -> int:
    """Find how many channels a chain takes: what its first layer that says so takes, else those of the output."""
    into, out_of = 1, 1
    for part in parts:
        if isinstance(part.module, nn.PixelUnshuffle):
            out_of *= part.module.downscale_factor**2
        elif isinstance(part.module, nn.PixelShuffle):
            into *= part.module.upscale_factor**2
        taken = channels_of(part.module)
        if taken is not None:
            return taken * into // out_of
    return (of_output[0] if of_output else 1) * into // out_of


def _shape_after(on_meta: Sequence[nn.Module], shape: Size) -> Size | None:
    """Find what shape a chain makes of another, without computing; `None` where it takes none such."""
    try:
        with torch.no_grad():
            x = torch.empty(1, *shape, device="meta", dtype=_dtype_of(on_meta))
            for module in on_meta:
                x = module(x)
            return tuple(x.shape[1:])
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
        return None


def _dtype_of(modules: Sequence[nn.Module]) -> torch.dtype:
    tensors = (t for module in modules for t in module.parameters() if t.is_floating_point())
    return next((t.dtype for t in tensors), torch.float64)


def _check_output(found: Size | None, shape: Size, y_shape: Size) -> None:
    if found is None or y_shape not in (found, (y_shape[0], *found)):
        gives = "is refused by it" if found is None else f"gives an output of {found}"
        raise ShapeError(f"an input of {shape} {gives}, but the output of the chain has shape {y_shape}; check both.")


def _size_before(on_meta: Sequence[nn.Module], channels: int, y_shape: Size, n_axes: int) -> Size:
    """Find the size of the input by bisection, axis by axis: a larger one never gives a smaller output."""
    target = y_shape[-n_axes:]
    largest = 1
    while largest <= MAX_SIZE:
        found = _shape_after(on_meta, (channels, *[largest] * n_axes))
        if (
            found is not None
            and len(found) == n_axes + 1
            and all(n > t for n, t in zip(found[1:], target, strict=True))
        ):
            break
        largest *= 2
    else:
        raise UsageError("the size of the input does not follow from that of the output; give input_size.")

    def least(axis: int, wanted: int) -> int:
        """Find the least size along an axis that gives an output of at least so many pixels."""
        low, high = 0, largest
        while high - low > 1:
            middle = (low + high) // 2
            size = [middle if a == axis else largest for a in range(n_axes)]
            found = _shape_after(on_meta, (channels, *size))
            low, high = (low, middle) if found is not None and found[1 + axis] >= wanted else (middle, high)
        return high

    sizes = []
    for axis, n in enumerate(target):
        first, behind = least(axis, n), least(axis, n + 1)
        stride = behind - first
        sizes.append(stride * n if first <= stride * n < behind else first)
    shape = (channels, *sizes)
    _check_output(_shape_after(on_meta, shape), shape, y_shape)
    return tuple(sizes)
