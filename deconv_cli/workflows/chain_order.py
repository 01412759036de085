"""Whether a module runs its children one after the other, with nothing between them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from deconv_cli.errors import UsageError
from deconv_cli.operators import synchronize
from deconv_cli.workflows.chain_parts import Named, channels_of, n_axes_of

TRIED_SIZE = 64
"""Pixels along each axis of the random image that a module is tried with."""


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
