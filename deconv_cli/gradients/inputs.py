"""Inputs of a model: batches from a file, and synthetic inputs."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from deconv_cli.errors import UsageError

TARGET_NAMES = ("target", "targets", "label", "labels", "y")
"""Names of tensors in a file that are the target of the loss."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of inputs, positional and by name, with their targets for the loss or None."""

    arguments: tuple[torch.Tensor, ...]
    keywords: dict[str, torch.Tensor]
    target: torch.Tensor | None

    @classmethod
    def sort(cls, tensors: dict[str, torch.Tensor], model: nn.Module, *, has_loss: bool = True) -> Batch:
        """Sort named tensors: the target goes to the loss, the others to forward, by name where the names agree.

        Without a separate loss, a target goes to forward too if forward has an argument of its name, such as `labels`.

        Raises:
            UsageError: there is no input.
        """
        taken = () if has_loss else tuple(inspect.signature(model.forward).parameters)
        names = [name for name in TARGET_NAMES if name in tensors and name not in taken]
        target = tensors[names[0]] if names else None
        inputs = {name: tensor for name, tensor in tensors.items() if name not in names}
        if not inputs:
            raise UsageError("the data should hold an input for the model, but hold only the target.")
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


_SPEC = re.compile(
    r"(?P<shape>\d+(,\d+)*|scalar)(:(?P<dtype>[a-z0-9]+))?(:(?P<low>-?\d+(\.\d+)?)\.\.(?P<high>-?\d+(\.\d+)?))?"
)

_DTYPES = {
    name: getattr(torch, name)
    for name in ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
}

_MAX_ELEMENTS = 2**31


@dataclass(frozen=True)
class InputSpec:
    """A synthetic tensor to draw; `dtype` None is that of the model.

    Values are uniform from `low` to `high`, whole numbers below `high`; `high` None is a normal distribution.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    low: float = 0.0
    high: float | None = None

    @classmethod
    def parse(cls, text: str, name: str) -> InputSpec:
        """Read `8,1,28,28`, `8,32:int64:0..100` or `8,3:float32:-1..1`; messages call it `name`.

        Raises:
            UsageError: not of this form, or a range that is empty.
        """
        found = _SPEC.fullmatch(text.replace(" ", ""))
        if not found or (found["dtype"] and found["dtype"] not in _DTYPES):
            raise UsageError(
                f"{name} must be a shape such as 8,1,28,28, with dtype and range if needed, such as "
                f"8,32:int64:0..100, but is '{text}'."
            )
        shape = () if found["shape"] == "scalar" else tuple(int(size) for size in found["shape"].split(","))
        if not 1 <= math.prod(shape) <= _MAX_ELEMENTS:
            raise UsageError(f"{name} must have between one and {_MAX_ELEMENTS} elements, but is '{text}'.")
        dtype = _DTYPES[found["dtype"]] if found["dtype"] else None
        low, high = (float(found["low"]), float(found["high"])) if found["low"] is not None else (0.0, None)
        if high is not None and dtype is not None and not dtype.is_floating_point:
            low, high = _whole_range(low, high, dtype, name, text)
        if high is not None and high <= low:
            raise UsageError(f"{name}: the range of '{text}' is empty; write LOW..HIGH with LOW below HIGH.")
        return cls(shape, dtype, low, high)

    def draw(self, default: torch.dtype, generator: torch.Generator) -> torch.Tensor:
        """Draw a tensor: standard normal, or uniform in the range."""
        dtype = self.dtype or default
        if dtype is torch.bool:
            return torch.randint(0, 2, self.shape, generator=generator).bool()
        if not dtype.is_floating_point:
            high = int(self.high) if self.high is not None else 2
            return torch.randint(int(self.low), high, self.shape, generator=generator).to(dtype)
        if self.high is None:
            return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)
        unit = torch.rand(self.shape, generator=generator, dtype=torch.float64)
        return (self.low + (self.high - self.low) * unit).to(dtype)


def draw_inputs(specs: list[InputSpec], default: torch.dtype, seed: int) -> tuple[torch.Tensor, ...]:
    """Draw one tensor for each specification."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(spec.draw(default, generator) for spec in specs)


def _whole_range(low: float, high: float, dtype: torch.dtype, name: str, text: str) -> tuple[int, int]:
    """Round the ends of a range to whole numbers; one that the dtype does not hold raises a `UsageError`."""
    if dtype is torch.bool:
        raise UsageError(f"{name}: bool takes no range, but '{text}' has one; leave it out.")
    first, last = math.ceil(low), math.ceil(high)
    limits = torch.iinfo(dtype)
    if first < limits.min or last - 1 > limits.max:
        raise UsageError(f"{name}: the range of '{text}' exceeds its dtype, which holds {limits.min} to {limits.max}.")
    return first, last
