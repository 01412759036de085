"""How to draw a synthetic tensor, written as `8,32:int64:0..100`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from deconv_cli.errors import UsageError

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
    """How to draw a synthetic tensor.

    Attributes:
        shape: its shape.
        dtype: its dtype, None for that of the model.
        low: smallest value.
        high: values stay below it for whole numbers, and reach it otherwise; None for a normal distribution.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    low: float = 0.0
    high: float | None = None

    @classmethod
    def parse(cls, text: str, name: str) -> InputSpec:
        """Read `8,1,28,28`, `8,32:int64:0..100` or `8,3:float32:-1..1`.

        Args:
            text: the specification.
            name: what it is of, for the message.

        Raises:
            UsageError: not of this form, or a range that is empty.
        """
        found = _SPEC.fullmatch(text.replace(" ", ""))
        if not found or (found["dtype"] and found["dtype"] not in _DTYPES):
            raise UsageError(
                f"{name} must be a shape such as 8,1,28,28, with dtype and range where they matter, such as "
                f"8,32:int64:0..100, but is '{text}'."
            )
        shape = () if found["shape"] == "scalar" else tuple(int(size) for size in found["shape"].split(","))
        if not 1 <= math.prod(shape) <= _MAX_ELEMENTS:
            raise UsageError(f"{name} must have between one and {_MAX_ELEMENTS} elements, but is '{text}'.")
        dtype = _DTYPES[found["dtype"]] if found["dtype"] else None
        low, high = (float(found["low"]), float(found["high"])) if found["low"] is not None else (0.0, None)
        if dtype is torch.bool and high is not None:
            raise UsageError(f"{name}: a range says nothing of bool, but '{text}' has one; leave it out.")
        if dtype is not None and not dtype.is_floating_point and high is not None:
            low, high = math.ceil(low), math.ceil(high)
            limits = torch.iinfo(dtype)
            if low < limits.min or high - 1 > limits.max:
                raise UsageError(
                    f"{name}: the range of '{text}' goes beyond its dtype, which holds {limits.min} to {limits.max}."
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
        """Write the specification as it would be typed."""
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
