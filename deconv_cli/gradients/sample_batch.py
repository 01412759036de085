"""Samples for a model: what forward and the loss take."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from deconv_cli.errors import UsageError

TARGET_NAMES = ("target", "targets", "label", "labels", "y")
"""Names under which tensors of a file are what the loss compares the output with."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of inputs, positional and by name, with their targets for the loss or None."""

    arguments: tuple[torch.Tensor, ...]
    keywords: dict[str, torch.Tensor]
    target: torch.Tensor | None

    @classmethod
    def sort(cls, tensors: dict[str, torch.Tensor], model: nn.Module, *, has_loss: bool = True) -> Batch:
        """Sort named tensors: `target` goes to the loss, the others to forward, by name where its arguments agree.

        Without a loss of its own, a target goes to forward too, where that has an argument of its name, as `labels`.

        Raises:
            UsageError: no input is left.
        """
        taken = () if has_loss else tuple(inspect.signature(model.forward).parameters)
        names = [name for name in TARGET_NAMES if name in tensors and name not in taken]
        target = tensors[names[0]] if names else None
        inputs = {name: tensor for name, tensor in tensors.items() if name not in names}
        if not inputs:
            raise UsageError("the data should hold an input for the model, but hold nothing besides the target.")
        if len(inputs) == 1:
            return cls(tuple(inputs.values()), {}, target)
        with contextlib.suppress(TypeError, ValueError):
            if set(inputs) <= set(inspect.signature(model.forward).parameters):
                return cls((), inputs, target)
        # Without names to go by, the order of the names is the order of the arguments: input0, input1, ...
        return cls(tuple(inputs[name] for name in sorted(inputs)), {}, target)

    @property
    def n_samples(self) -> int:
        """How many samples there are along the first axis."""
        return int((*self.arguments, *self.keywords.values())[0].shape[0])

    def sample(self, index: int) -> Batch:
        """Take one sample, as a batch of one."""
        return self.map(lambda tensor: tensor[index : index + 1])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Change every tensor."""
        return Batch(
            tuple(change(tensor) for tensor in self.arguments),
            {name: change(tensor) for name, tensor in self.keywords.items()},
            None if self.target is None else change(self.target),
        )
