"""A floating result as the samples of a file: rounded and clipped, never rescaled, with what was done to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from deconv_cli.errors import UntrustworthyResultError
from deconv_cli.io.codec import Array
from deconv_cli.io.samples import are_finite
from deconv_cli.vocabulary import counted


@dataclass(frozen=True, eq=False)
class ConvertedSamples:
    """The samples of a file.

    Attributes:
        samples: of the type of the file, of the shape of the result.
        n_clipped: those that the type cannot hold, and that became its nearest end.
        notes: what was done, a sentence each.
    """

    samples: Array
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
