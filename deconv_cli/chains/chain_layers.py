"""The layers of a chain: chosen by their names, in the order in which they act, and which of them are affine."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from deconv_cli.chains.chain_size import channels_of, n_axes_of
from deconv_cli.errors import UsageError
from deconv_cli.operators import synchronize

Named = tuple[str, nn.Module]
Layers = nn.Module | Sequence[nn.Module] | Sequence[Named]

RANGE = ".."
TRIED_SIZE = 64
"""Pixels along each axis of the random image that a module is tried with."""
_BY_AXES = (
    *("Conv", "ConvTranspose", "BatchNorm", "AvgPool", "AdaptiveAvgPool", "ConstantPad", "ZeroPad"),
    *("ReflectionPad", "ReplicationPad", "CircularPad"),
)
_AFFINE = {getattr(nn, f"{name}{n}d") for name in _BY_AXES for n in (1, 2, 3)} | {
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Upsample, nn.UpsamplingNearest2d),
    *(nn.UpsamplingBilinear2d, nn.Linear, nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold),
}


@dataclass(frozen=True, eq=False)
class Part:
    """One layer of a chain in evaluation mode.

    Attributes:
        name: in its model.
        module: a copy without gradients, in the precision of the arithmetic.
    """

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
    """Copy the layers of a chain, and tell which are affine.

    Args:
        layers: a module, of which an `nn.Sequential` is opened; or modules in the order in which they act, with names
            or without.
        like: has the dtype and the device of the arithmetic.

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
    return [Part(name, module) for top, each in copies for name, module in _opened(top, each)]


def compose(parts: Sequence[Part]) -> nn.Sequential:
    """Give the module that runs the parts one after the other."""
    return nn.Sequential(*(part.module for part in parts))


def _opened(name: str, module: nn.Module) -> Iterator[Named]:
    """List a module, or the layers of a sequence."""
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _opened(f"{name}.{child_name}".removeprefix("."), child)


def check_order(parent: nn.Module, layers: Sequence[Named]) -> bool:
    """Make sure that each layer takes exactly what the one before it gives, by running their module once.

    Args:
        parent: the module that the layers are children of; an `nn.Sequential` needs no trial.
        layers: some of its children, with their names, in the order in which they are to act.

    Returns:
        Whether it is certain; it is not where the module cannot be run on a random image, or runs a layer twice.

    Raises:
        UsageError: the module does something else between two of them.
    """
    if type(parent) is nn.Sequential or len(layers) < 2:
        return True
    module = copy.deepcopy(parent).eval()
    seen = {name: _Calls(module.get_submodule(name)) for name, _ in layers}
    generator = torch.Generator().manual_seed(0)
    like = next(iter(module.parameters()), torch.zeros(()))
    shape = (1, channels_of(module) or 1, *[TRIED_SIZE] * n_axes_of(module))
    # A head that wants another size fails after what is looked at.
    with torch.no_grad(), contextlib.suppress(Exception):
        module(torch.randn(shape, generator=generator).to(like))
    for (before, first), (after, second) in pairwise(seen.items()):
        if first.is_single and second.is_single and not second.takes_from(first):
            raise UsageError(
                f"the forward pass of {type(parent).__name__} does something between '{before}' and '{after}', so "
                "that they are no chain; choose layers that follow one another, or write a module that runs them."
            )
    return all(calls.is_single for calls in seen.values())


class _Calls:
    """Remembers what a layer took and gave; copies, since the next layer may work in place."""

    def __init__(self, layer: nn.Module) -> None:
        self._taken: list[Tensor] = []
        self._given: list[Tensor] = []
        layer.register_forward_pre_hook(self._before)
        layer.register_forward_hook(self._after)

    @property
    def is_single(self) -> bool:
        """Whether the layer was called once, with a tensor, and gave one."""
        return len(self._taken) == len(self._given) == 1

    def takes_from(self, other: _Calls) -> bool:
        """Return whether the layer took exactly what another one gave."""
        taken, given = self._taken[0], other._given[0]
        return taken.shape == given.shape and synchronize.holds_everywhere(taken == given)

    def _before(self, layer: nn.Module, inputs: tuple[object, ...]) -> None:
        self._taken += [each.clone() for each in inputs if isinstance(each, Tensor)]

    def _after(self, layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        self._given += [output.clone()] if isinstance(output, Tensor) else []


def choose_layers(model: nn.Module, text: str) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    """Find the layers of a model that a text names.

    Args:
        model: the model.
        text: names with commas between, such as `0,1,2`, or the first and the last one, such as `conv1..layer2`: those
            two and all between them, in the order in which their module lists them. A name may lead into a module, as
            `features.0` does.

    Returns:
        The module that the layers are children of, and the layers with their names there, one at least.

    Raises:
        UsageError: a name that the model has not, an empty range, or layers of several modules.
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
        raise UsageError(f"layers are named in the order in which they act, each once, but '{text}' is not in order.")
    listed = list(parent.named_children())
    return parent, [listed[place] for place in places]


def _parent(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise UsageError(
            f"the model has no module '{name}'; it has {_listed([name for name, _ in model.named_children()])}."
        ) from error


def _place(children: list[str], name: str, text: str) -> int:
    if name not in children:
        raise UsageError(f"there is no layer '{name}' for layers=\"{text}\", only {_listed(children)}.")
    return children.index(name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "no layers"
