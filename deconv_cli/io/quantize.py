"""Converting a result to the sample type of a file: rounded and clipped, never rescaled, and never in silence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from deconv_cli.errors import UntrustworthyResultError


def to_dtype(values: torch.Tensor, dtype: str) -> tuple[npt.NDArray[np.generic], tuple[str, ...]]:
    """Convert a floating result of any shape on the CPU to the sample type of a file; gives what was done to it too.

    Whole numbers are rounded half to even; what lies outside the range of the type becomes its nearest end.

    Raises:
        UntrustworthyResultError: some values are NaN or Inf.
    """
    n_bad = int((~torch.isfinite(values)).sum())
    if n_bad:
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
        return values.numpy().astype(target, copy=False), ()
    end = float(np.finfo(target).max)
    return _saturated(values, -end, end, target, f"rounded from {source} to {dtype}")


def _saturated(
    values: torch.Tensor, lowest: float, highest: float, target: np.dtype[np.generic], done: str
) -> tuple[npt.NDArray[np.generic], tuple[str, ...]]:
    n_clipped = int(((values < lowest) | (values > highest)).sum())
    percent = 100 * n_clipped / values.numel()
    clipped = f"{n_clipped} samples ({percent:.3g} %) clipped to {lowest:g} to {highest:g}"
    samples = values.clamp(lowest, highest).numpy().astype(target)
    return samples, (f"{done}, {clipped if n_clipped else 'no sample clipped'}",)
