"""How large the input of a chain was, from the size of its output."""

from __future__ import annotations

import copy

import torch
from torch import nn

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.vocabulary import Size

MAX_SIZE = 2**15
"""Pixels along an axis at most, where the size of an input is looked for."""


def input_shape_of(layers: nn.Sequential, y_shape: Size, input_size: Size | None) -> Size:
    """Find the shape `(C, *size)` of the input of a chain from that of its output.

    Args:
        layers: of the chain, in evaluation mode.
        y_shape: shape of the data, with a batch axis or without.
        input_size: the pixels of the input, or channels and pixels; if not given, the size is the stride times that of
            the output, if that is possible, else the smallest possible one.

    Raises:
        ShapeError: no input gives such outputs.
        UsageError: the size does not follow from the output.
    """
    n_axes = n_axes_of(layers)
    on_meta = copy.deepcopy(layers).to("meta")
    given = () if input_size is None else tuple(input_size)
    given = given * n_axes if len(given) == 1 else given
    if given and len(given) not in (n_axes, n_axes + 1):
        raise ShapeError(f"the input of this chain has {n_axes} axes of space, but input_size is {given}.")
    channels = given[0] if len(given) > n_axes else _channels(layers, y_shape[-1 - n_axes : -n_axes])
    if given:
        shape = (channels, *given[-n_axes:])
        _check_output(_shape_after(on_meta, shape), shape, y_shape)
        return shape
    return (channels, *_size_before(on_meta, channels, y_shape, n_axes))


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


def _channels(layers: nn.Sequential, of_output: Size) -> int:
    """Find how many channels a chain takes: what its first layer that says so takes, else those of the output."""
    into, out_of = 1, 1
    for layer in layers:
        if isinstance(layer, nn.PixelUnshuffle):
            out_of *= layer.downscale_factor**2
        elif isinstance(layer, nn.PixelShuffle):
            into *= layer.upscale_factor**2
        taken = channels_of(layer)
        if taken is not None:
            return taken * into // out_of
    return (of_output[0] if of_output else 1) * into // out_of


def _shape_after(on_meta: nn.Sequential, shape: Size) -> Size | None:
    """Find what shape a chain makes of another, without computing; `None` where it takes none such."""
    try:
        with torch.no_grad():
            dtype = next((t.dtype for t in on_meta.parameters() if t.is_floating_point()), torch.float64)
            return tuple(on_meta(torch.empty(1, *shape, device="meta", dtype=dtype)).shape[1:])
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
        return None


def _check_output(found: Size | None, shape: Size, y_shape: Size) -> None:
    if found is None or y_shape not in (found, (y_shape[0], *found)):
        gives = "is refused by it" if found is None else f"gives an output of {found}"
        raise ShapeError(f"an input of {shape} {gives}, but the output of the chain has shape {y_shape}; check both.")


def _size_before(on_meta: nn.Sequential, channels: int, y_shape: Size, n_axes: int) -> Size:
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
