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
from deconv_cli.gradients.losses import positional_parameters
from deconv_cli.gradients.subject import Subject

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
        if dtype is torch.bool and high is not None:
            raise UsageError(f"{name}: bool takes no range, but '{text}' has one; leave it out.")
        if dtype is not None and not dtype.is_floating_point and high is not None:
            low, high = math.ceil(low), math.ceil(high)
            limits = torch.iinfo(dtype)
            if low < limits.min or high - 1 > limits.max:
                raise UsageError(
                    f"{name}: the range of '{text}' exceeds its dtype, which holds {limits.min} to {limits.max}."
                )
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

    def __str__(self) -> str:
        """Write the specification as a user types it."""
        text = ",".join(str(size) for size in self.shape) or "scalar"
        if self.dtype is not None:
            text += f":{str(self.dtype).removeprefix('torch.')}"
        elif self.high is not None:
            text += ":float32"
        return text if self.high is None else f"{text}:{self.low:g}..{self.high:g}"


def draw_inputs(specs: list[InputSpec], default: torch.dtype, seed: int) -> tuple[torch.Tensor, ...]:
    """Draw one tensor for each specification."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(spec.draw(default, generator) for spec in specs)


_BATCH = 4
_TIME = 12
_MAX_GUESSED = 2**24
_SIDES = (28, 32, 64, 96, 128, 224, 256, 299, 16, 8)


def guess_inputs(model: nn.Module, default: torch.dtype, seed: int) -> tuple[InputSpec, str]:
    """Read the shape of the input off the first layer; of several usual sizes take the first one that runs.

    Returns:
        The shape, and a note on where it came from.

    Raises:
        UsageError: the shape is not certain.
    """
    wants = sum(parameter.default is parameter.empty for parameter in positional_parameters(model)) or 1
    first = next(
        ((name, m) for name, m in model.named_modules() if not list(m.children()) and list(m.parameters())), None
    )
    candidates = _candidates(first[1]) if first is not None and wants == 1 else []
    for spec in filter(_can_be_drawn, candidates):
        if _runs(model, spec, default, seed):
            assert first is not None
            note = f"the input shape {spec} was inferred from the first layer '{first[0] or type(first[1]).__name__}'"
            return spec, note
    why = f"forward takes {wants} inputs" if wants != 1 else "it cannot be inferred from the first layer"
    raise UsageError(f"the shape of the input is not known ({why}); give an input, or its shape.")


def _candidates(layer: nn.Module) -> list[InputSpec]:
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return [InputSpec((_BATCH, _TIME), torch.int64, 0, layer.num_embeddings)]
    if isinstance(layer, nn.Linear):
        return [InputSpec((_BATCH, layer.in_features)), InputSpec((_BATCH, _TIME, layer.in_features))]
    if isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
        sizes = (_BATCH, _TIME) if layer.batch_first else (_TIME, _BATCH)
        return [InputSpec((*sizes, layer.input_size if isinstance(layer, nn.RNNBase) else layer.embed_dim))]
    if isinstance(layer, nn.RNNCellBase):
        return [InputSpec((_BATCH, _TIME, layer.input_size))]
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        n_axes = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[type(layer)]
        sides = (16, 32, 8) if n_axes == 3 else _SIDES
        return [InputSpec((_BATCH, layer.in_channels, *[side] * n_axes)) for side in sides]
    if isinstance(layer, nn.BatchNorm1d):
        return [InputSpec((_BATCH, layer.num_features))]
    if isinstance(layer, nn.LayerNorm) and isinstance(layer.normalized_shape, tuple):
        return [InputSpec((_BATCH, *layer.normalized_shape)), InputSpec((_BATCH, _TIME, *layer.normalized_shape))]
    return []


def _can_be_drawn(spec: InputSpec) -> bool:
    """Return whether the sizes of a layer are possible sizes of a tensor: a file may hold any number there."""
    sizes = (*spec.shape, spec.high if spec.high is not None else 1)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return False
    return torch.Size(spec.shape).numel() <= _MAX_GUESSED


def _runs(model: nn.Module, spec: InputSpec, default: torch.dtype, seed: int) -> bool:
    generator = torch.Generator().manual_seed(seed)
    subject = Subject(model, (spec.draw(default, generator),), {}, None, lambda output, _: output, seed)
    # With a graph, since forward may take gradients itself.
    with contextlib.suppress(Exception):
        subject.output()
        return True
    return False
