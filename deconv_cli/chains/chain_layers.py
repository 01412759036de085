"""The layers of a chain: their choice by name, their order, and the size of their input."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.operators import synchronize
from deconv_cli.vocabulary import Size, name_some

Named = tuple[str, nn.Module]
Layers = nn.Module | Sequence[nn.Module] | Sequence[Named]

RANGE = ".."
TRIED_SIZE = 64
"""Pixels along each axis of the random image that the order of layers is tried on."""
MAX_SIZE = 2**15
"""Pixels along an axis of an input, at most."""
_BY_AXES = (
    *("Conv", "ConvTranspose", "BatchNorm", "AvgPool", "AdaptiveAvgPool", "ConstantPad", "ZeroPad"),
    *("ReflectionPad", "ReplicationPad", "CircularPad"),
)
_IDLE = {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout}
_AFFINE = {getattr(nn, f"{name}{n}d") for name in _BY_AXES for n in (1, 2, 3)} | {
    *_IDLE,
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Upsample, nn.UpsamplingNearest2d),
    *(nn.UpsamplingBilinear2d, nn.Linear, nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold),
}


@dataclass(frozen=True, eq=False)
class Part:
    """One layer of a chain: its name in the model, and a copy for evaluation in the precision of the arithmetic."""

    name: str
    module: nn.Module

    @property
    def is_affine(self) -> bool:
        """Whether the layer is x → Ax + b."""
        statistics = getattr(self.module, "running_mean", self.module)  # without them each batch is its own
        return type(self.module) in _AFFINE and statistics is not None

    @property
    def description(self) -> str:
        """The layer in torch's words, shortened."""
        words = " ".join(repr(self.module).split())
        return words if len(words) <= 100 else f"{words[:97]}..."


def list_parts(layers: Layers, like: Tensor) -> list[Part]:
    """Copy the layers of a chain, and those of an `nn.Sequential`; `like` has the dtype and device of the arithmetic.

    Raises:
        UsageError: `layers` is empty, or holds something else than modules.
    """
    given: list[Named]
    if isinstance(layers, nn.Module) or not isinstance(layers, Iterable):
        given = [("", layers)]
    else:
        given = [each if isinstance(each, tuple) else (str(n), each) for n, each in enumerate(layers)]
    wrong = next((type(module).__name__ for _, module in given if not isinstance(module, nn.Module)), None)
    if wrong is not None or not given:
        raise UsageError(f"layers must be at least one torch module, but there is {wrong or 'none'}.")
    copies = [(name, copy.deepcopy(module).to(like).eval().requires_grad_(False)) for name, module in given]
    return [Part(name, module) for top, each in copies for name, module in _opened(top, each)]


def compose(parts: Sequence[Part]) -> nn.Sequential:
    """Return the module that runs the parts in order."""
    return nn.Sequential(*(part.module for part in parts))


def _opened(name: str, module: nn.Module) -> Iterator[Named]:
    """List a module, or the layers of a sequence."""
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _opened(f"{name}.{child_name}".removeprefix("."), child)


def check_order(parent: nn.Module, layers: Sequence[Named]) -> bool:
    """Check by one run of their module that each layer takes exactly the output of the one before it.

    `layers` are some of its children in order; an `nn.Sequential` needs no run. The answer is not certain, and `False`,
    if the module fails on a random image or runs a layer twice. A module that does something else between two of the
    layers raises a `UsageError`.
    """
    if type(parent) is nn.Sequential:
        children = list(parent.named_children())
        inside = children[children.index(layers[0]) : children.index(layers[-1]) + 1]
        skipped = next((each for each in inside if each not in layers and type(each[1]) not in _IDLE), None)
        if skipped is not None:
            raise UsageError(
                f"the model runs '{skipped[0]}', a {type(skipped[1]).__name__}, between '{layers[0][0]}' and "
                f"'{layers[-1][0]}', so they are no chain without it; name it too, or give a range with '{RANGE}' "
                "between the first and the last name."
            )
        return True
    if len(layers) < 2:
        return True
    module = copy.deepcopy(parent).eval()
    taken, given = ({name: list[Tensor]() for name, _ in layers} for _ in range(2))
    for name, _ in layers:
        layer = module.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, inputs, held=taken[name]: held.extend(_copies(inputs)))
        layer.register_forward_hook(lambda _, inputs, output, held=given[name]: held.extend(_copies([output])))
    generator = torch.Generator().manual_seed(0)
    like = next(iter(module.parameters()), torch.zeros(()))
    shape = (1, channels_of(module) or 1, *[TRIED_SIZE] * n_axes_of(module))
    # A head that needs another size fails after the layers in question.
    with torch.no_grad(), contextlib.suppress(Exception):
        module(torch.randn(shape, generator=generator).to(like))
    single = {name for name, _ in layers if len(taken[name]) == len(given[name]) == 1}
    for (before, _), (after, _) in pairwise(layers):
        if not {before, after} <= single:
            continue
        came, left = taken[after][0], given[before][0]
        if came.shape != left.shape or not synchronize.holds_everywhere(came == left):
            raise UsageError(
                f"the forward pass of {type(parent).__name__} does something between '{before}' and '{after}', so "
                "they are no chain; choose layers that follow one another, or write a module that runs them."
            )
    return len(single) == len(layers)


def _copies(values: Iterable[object]) -> list[Tensor]:
    """Copy tensors, since the next layer may work in place."""
    return [value.clone() for value in values if isinstance(value, Tensor)]


def choose_layers(model: nn.Module, text: str) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    """Find the layers of a model that a text names, and the module around them.

    The text holds names with commas between, such as `0,1,2`, or the first and the last name of a range in the order of
    their module, such as `conv1..layer2`. A name may lead into a module, as `features.0` does.

    Raises:
        UsageError: a name does not exist, a range is empty, or the layers are children of several modules.
    """
    names = [name.strip() for name in (text.split(RANGE) if RANGE in text else text.split(","))]
    parents = {name.rpartition(".")[0] for name in names}
    if (RANGE in text and len(names) != 2) or not all(names) or len(parents) != 1:
        raise UsageError(
            f"layers must be names of one module such as 0,1,2 or a range such as conv1..layer2, but is '{text}'."
        )
    parent = _parent(model, parents.pop())
    children = [child for child, _ in parent.named_children()]
    places = [_place(children, name.rpartition(".")[2], text) for name in names]
    if RANGE in text:
        places = list(range(places[0], places[1] + 1))
    if places != sorted(set(places)) or not places:
        raise UsageError(
            f"layers must be named once each, in the order in which they act, but '{text}' is not in order."
        )
    listed = list(parent.named_children())
    return parent, [listed[place] for place in places]


def _parent(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        known = name_some((child for child, _ in model.named_children()), 12) or "no layers"
        raise UsageError(f"the model has no module '{name}'; it has {known}.") from error


def _place(children: list[str], name: str, text: str) -> int:
    if name not in children:
        raise UsageError(
            f"there is no layer '{name}' for layers=\"{text}\", only {name_some(children, 12) or 'no layers'}."
        )
    return children.index(name)


def input_shape_of(layers: nn.Sequential, y_shape: Size, input_size: Size | None) -> Size:
    """Find the shape `(C, *size)` of the input of a chain from the shape of its output, with or without a batch axis.

    `input_size` gives the pixels of the input, or channels and pixels; by default the stride times the size of the
    output if that is possible, otherwise the smallest possible size.

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
    """Return how many axes of space the first layer of a module works on, by default two."""
    names = (type(each).__name__ for each in module.modules())
    return next((int(name[-2]) for name in names if name[-2:] in ("1d", "2d", "3d")), 2)


def channels_of(module: nn.Module) -> int | None:
    """Return how many channels the first layer of a module takes; `None` if no layer defines it."""
    for each in module.modules():
        taken = getattr(each, "in_channels", None) or getattr(each, "num_features", None)
        if taken is not None:
            return int(taken)
    return None


def _channels(layers: nn.Sequential, of_output: Size) -> int:
    """Return how many channels the first layer of a chain takes, by default as many as the output has."""
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
    """Return the output shape of a chain for an input shape; `None` if the chain refuses it."""
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
    """Find the size of the input by bisection along each axis: a larger input never gives a smaller output.

    If several sizes give the output, choose `stride` times the output if possible, else the smallest.
    """
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
        raise UsageError("the size of the input does not follow from the size of the output; give input_size.")

    def least(axis: int, wanted: int) -> int:
        """Find the least size along an axis that gives an output of at least `wanted` pixels."""
        low, high = 0, largest
        while high - low > 1:
            middle = (low + high) // 2
            size = [middle if a == axis else largest for a in range(n_axes)]
            found = _shape_after(on_meta, (channels, *size))
            low, high = (low, middle) if found is not None and found[1 + axis] >= wanted else (middle, high)
        return high

    sizes = []
    for axis, n in enumerate(target):
        smallest, too_large = least(axis, n), least(axis, n + 1)
        stride = too_large - smallest
        sizes.append(stride * n if smallest <= stride * n < too_large else smallest)
    shape = (channels, *sizes)
    _check_output(_shape_after(on_meta, shape), shape, y_shape)
    return tuple(sizes)
