"""Samples as tensors: the sample types that are understood, and the check that all samples are finite."""

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
"""An array of NumPy or torch."""

_WIDER = {"uint16": "int32", "uint32": "int64"}

UNDERSTOOD = {
    *("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
}
"""NumPy names of the sample types that are understood."""


def dtype_name(samples: Samples) -> str:
    """Name a sample type as NumPy does, for instance `uint16`."""
    if isinstance(samples, torch.Tensor):
        return str(samples.dtype).removeprefix("torch.")
    return samples.dtype.newbyteorder("=").name


def working_bytes(shape: Iterable[int], dtype: np.dtype[np.generic]) -> int:
    """Compute the bytes of samples as `as_real_tensor` converts them."""
    return limits.array_bytes(shape, dtype.itemsize * (2 if dtype.name in _WIDER else 1))


def as_real_tensor(path: Path, samples: Samples) -> torch.Tensor:
    """Convert samples to a dense real tensor on the CPU.

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
    """Raise `MalformedInputError` for NaN and Inf in a tensor, which the message calls `what`."""
    if _are_finite(tensor):
        return
    bad = ~torch.isfinite(tensor)
    first = tuple(int(i) for i in np.unravel_index(int(bad.flatten().to(torch.uint8).argmax()), tensor.shape))
    raise MalformedInputError(
        f"'{path}' should hold finite numbers, but {int(bad.sum())} of {tensor.numel()} {what} samples are NaN or Inf, "
        f"the first at index {first}; replace them first."
    )


def _are_finite(values: torch.Tensor) -> bool:
    """Check the least and the largest sample: this takes a ninth of the time of checking each."""
    if not values.is_floating_point() or values.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(values.aminmax())).all())


@dataclass(frozen=True, eq=False)
class ConvertedSamples:
    """The samples of a file: of its type, the number of clipped ones, and notes on the conversion."""

    samples: npt.NDArray[np.generic]
    n_clipped: int = 0
    notes: tuple[str, ...] = ()


def convert_samples(values: torch.Tensor, dtype: str) -> ConvertedSamples:
    """Convert a floating result of any shape on the CPU to the sample type of a file.

    Whole numbers are rounded half to even; samples outside the range of the type become its nearest end.

    Raises:
        UntrustworthyResultError: some values are NaN or Inf.
    """
    if not _are_finite(values):
        n_bad = int((~torch.isfinite(values)).sum())
        raise UntrustworthyResultError(
            f"{n_bad} of {values.numel()} samples of the result are NaN or Inf, so nothing was written; the problem "
            "is too ill-conditioned with these settings, try a larger lam."
        )
    source = str(values.dtype).removeprefix("torch.")
    target = np.dtype(dtype)
    if np.issubdtype(target, np.integer):
        lowest, highest = (float(end) for end in (np.iinfo(target).min, np.iinfo(target).max))
        values, done = values.round(), f"rounded to {dtype}"
    elif torch.finfo(getattr(torch, dtype)).bits >= torch.finfo(values.dtype).bits:
        return ConvertedSamples(values.numpy().astype(target, copy=False))
    else:
        highest = float(np.finfo(target).max)
        lowest, done = -highest, f"rounded from {source} to {dtype}"
    n_clipped = int(((values < lowest) | (values > highest)).sum())
    percent = 100 * n_clipped / values.numel()
    clipped = f"{counted(n_clipped, 'sample')} ({percent:.3g} %) clipped to {lowest:g} to {highest:g}"
    samples = values.clamp(lowest, highest).numpy().astype(target)
    return ConvertedSamples(samples, n_clipped, (f"{done}, {clipped if n_clipped else 'no sample clipped'}",))
