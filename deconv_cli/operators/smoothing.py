"""Smooth stand-ins for ReLU, PReLU and max pooling, which know of inputs that the true functions give nothing of.

A function with kinks shows an iteration only the side that it is on. With max(a, b) replaced by log(eᵃ + eᵇ), first
blunt and then ever sharper, both sides pull, and the iteration arrives at the kinks from nearby (graduated smoothing:
Chen and Mangasarian, A class of smoothing functions for nonlinear and mixed complementarity problems, Computational
Optimization and Applications 5, 1996).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

RELUS = ("relu", "relu_")
MAX_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d")
_OUTSIDE = -1e30  # below every input, but not infinite: infinity times zero is no number


class Smoothed(TorchFunctionMode):
    """Within this context torch's ReLU, PReLU and max pooling are smooth, in modules and in functions alike.

    Args:
        sharpness: how many times the root mean square of its input a function is blunt by; the true one at infinity.

    Attributes:
        n_replaced: how often something was replaced.
    """

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self._sharpness = sharpness
        self.n_replaced = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  what the function gives
        """Stand in for one call of a function of torch."""
        named, name = kwargs or {}, getattr(func, "__name__", "")
        if name in RELUS:
            self.n_replaced += 1
            return self._relu(args[0])
        if name == "prelu":
            self.n_replaced += 1
            x, slopes = args[:2]
            slopes = slopes.reshape(-1, *[1] * (x.ndim - 2)) if len(slopes) > 1 else slopes
            return slopes * x + (1 - slopes) * self._relu(x)
        if name in MAX_POOLS and not named.get("return_indices", False):
            self.n_replaced += 1
            unit = self._unit(args[0])
            windows = pooling_windows(int(name[-2]), *args, **{k: v for k, v in named.items() if k != "return_indices"})
            return torch.logsumexp(windows / unit, -1) * unit
        return func(*args, **named)

    def _relu(self, x: Tensor) -> Tensor:
        unit = self._unit(x)
        return functional.softplus(x / unit, threshold=40) * unit

    def _unit(self, x: Tensor) -> Tensor:
        size = x.detach().square().mean().sqrt()
        return torch.where(size > 0, size, 1) / self._sharpness


def pooling_windows(
    n_axes: int,
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """List what each output of a max pooling is the largest of, with the words of torch's functions.

    Returns:
        Shape `(*output, n)`, n the pixels of a window; those outside are far below all others.
    """

    def per_axis(value: int | Sequence[int]) -> list[int]:
        return [value] * n_axes if isinstance(value, int) else list(value) * (n_axes if len(value) == 1 else 1)

    k, pads, gaps = per_axis(kernel_size), per_axis(padding), per_axis(dilation)
    steps = k if stride is None or stride == [] else per_axis(stride)
    pool = getattr(torch, f"max_pool{n_axes}d")
    with torch.no_grad():
        size = pool(x.detach(), k, steps, pads, gaps, ceil_mode).shape[-n_axes:]
    reach = [(n - 1) * step + gap * (width - 1) + 1 for n, step, gap, width in zip(size, steps, gaps, k, strict=True)]
    more = [max(r - n - p, 0) for r, n, p in zip(reach, x.shape[-n_axes:], pads, strict=True)]
    sides = [side for before, after in zip(reversed(pads), reversed(more), strict=True) for side in (before, after)]
    padded = functional.pad(x, sides, value=_OUTSIDE)
    windows = []
    for offset in itertools.product(*(range(width) for width in k)):
        axes = zip(offset, size, steps, gaps, strict=True)
        cut: list[Any] = [slice(o * gap, o * gap + (n - 1) * step + 1, step) for o, n, step, gap in axes]
        windows.append(padded[(..., *cut)])
    return torch.stack(windows, -1)
