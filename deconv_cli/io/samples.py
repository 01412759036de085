"""Samples as tensors: which types are worked on, and whether all of them are finite."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from deconv_cli.errors import MalformedInputError, UntrustworthyResultError
from deconv_cli.io import limits
from deconv_cli.vocabulary import counted

Samples: TypeAlias = npt.NDArray[np.generic] | torch.Tensor
"""An array as its library gives it."""

_WIDER = {"uint16": "int32", "uint32": "int64"}

UNDERSTOOD = {
    *("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
}
"""NumPy names of the sample types that are worked on."""


def dtype_name(samples: Samples) -> str:
    """Name a sample type as NumPy does, for instance `uint16`."""
    if isinstance(samples, torch.Tensor):
        return str(samples.dtype).removeprefix("torch.")
    return samples.dtype.newbyteorder("=").name


def working_bytes(shape: Iterable[int], dtype: np.dtype[np.generic]) -> int:
    """Give the bytes of samples as `as_real_tensor` converts them."""
    return limits.array_bytes(shape, dtype.itemsize * (2 if dtype.name in _WIDER else 1))


def as_real_tensor(path: Path, samples: Samples) -> torch.Tensor:
    """Take samples as a dense real tensor on the CPU.

    uint16 and uint32 become int32 and int64, because torch computes next to nothing with them; bool becomes uint8.

    Raises:
        MalformedInputError: complex, quantized, sparse or otherwise not real numbers, or of size zero.
    """
    name = dtype_name(samples)
    if name not in UNDERSTOOD:
        raise MalformedInputError(f"'{path}' should hold real numbers, but its samples are {name}; convert it first.")
    if 0 in samples.shape:
        raise MalformedInputError(f"'{path}' holds no samples: its shape is {tuple(samples.shape)}.")
    if isinstance(samples, torch.Tensor):
        tensor = samples.detach()
        return tensor.to(getattr(torch, "uint8" if name == "bool" else _WIDER.get(name, name))).contiguous()
    target = np.dtype("uint8" if name == "bool" else _WIDER.get(name, name))
    return torch.from_numpy(np.require(samples, target, ["C_CONTIGUOUS", "WRITEABLE"]))


def check_finite(path: Path, tensor: torch.Tensor, what: str) -> None:
    """Refuse NaN and Inf in a tensor of any shape, which the message calls `what`, for instance `image`.

    Raises:
        MalformedInputError: some samples are not finite; says how many, and the index of the first.
    """
    if are_finite(tensor):
        return
    bad = ~torch.isfinite(tensor)
    first = tuple(int(i) for i in np.unravel_index(int(bad.flatten().to(torch.uint8).argmax()), tensor.shape))
    raise MalformedInputError(
        f"'{path}' should hold finite numbers, but {int(bad.sum())} of {tensor.numel()} {what} samples are NaN or Inf, "
        f"the first at index {first}; replace them first."
    )


def are_finite(values: torch.Tensor) -> bool:
    """Return whether samples hold no NaN and no Inf: the least and the largest tell, a ninth of looking at each."""
    if not values.is_floating_point() or values.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(values.aminmax())).all())


@dataclass(frozen=True, eq=False)
class ConvertedSamples:
    """The samples of a file.

    Attributes:
        samples: of the type of the file, of the shape of the result.
        n_clipped: those that the type cannot hold, and that became its nearest end.
        notes: what was done, a sentence each.
    """

    samples: npt.NDArray[np.generic]
    n_clipped: int = 0
    notes: tuple[str, ...] = ()


def convert_samples(values: torch.Tensor, dtype: str) -> ConvertedSamples:
    """Convert a floating result of any shape on the CPU to the sample type of a file.

    Whole numbers are rounded half to even; what lies outside the range of the type becomes its nearest end.

    Raises:
        UntrustworthyResultError: some values are NaN or Inf.
    """
    if not are_finite(values):
        n_bad = int((~torch.isfinite(values)).sum())
        raise UntrustworthyResultError(
            f"{n_bad} of {values.numel()} samples of the result are NaN or Inf, so nothing was written; the problem "
            "is too ill-conditioned with these settings, try a larger lam."
        )
    source = str(values.dtype).removeprefix("torch.")
    target = np.dtype(dtype)
    if np.issubdtype(target, np.integer):
        lowest, highest = (float(end) for end in (np.iinfo(target).min, np.iinfo(target).max))
        return _saturated(values.round(), lowest, highest, target, f"rounded to {dtype}")
    if torch.finfo(getattr(torch, dtype)).bits >= torch.finfo(values.dtype).bits:
        return ConvertedSamples(values.numpy().astype(target, copy=False))
    end = float(np.finfo(target).max)
    return _saturated(values, -end, end, target, f"rounded from {source} to {dtype}")


def _saturated(
    values: torch.Tensor, lowest: float, highest: float, target: np.dtype[np.generic], done: str
) -> ConvertedSamples:
    n_clipped = int(((values < lowest) | (values > highest)).sum())
    percent = 100 * n_clipped / values.numel()
    clipped = f"{counted(n_clipped, 'sample')} ({percent:.3g} %) clipped to {lowest:g} to {highest:g}"
    samples = values.clamp(lowest, highest).numpy().astype(target)
    return ConvertedSamples(samples, n_clipped, (f"{done}, {clipped if n_clipped else 'no sample clipped'}",))
