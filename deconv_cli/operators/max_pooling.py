"""What the outputs of a max pooling say of its inputs: none is larger, and in each window one is as large."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deconv_cli.operators.bounds import Bounds
from deconv_cli.operators.smoothing import pooling_windows
from deconv_cli.vocabulary import Size

MaxPooling = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d


class PooledInputs:
    """The inputs of a max pooling whose outputs lie within bounds.

    No input is larger than the least of the upper bounds of its windows. In each window that has a lower bound one
    input is at least that large; which one is not known, but it is none whose upper bound is below, and where windows
    that overlap have one and the same output it is one that they share.

    Args:
        pooling: the layer.
        bounds: of its outputs, shape `(C, *pooled_size)`.
        size: pixels of its input along each axis.

    Attributes:
        n_inputs: how many inputs there are, of all channels.
    """

    def __init__(self, pooling: MaxPooling, bounds: Bounds, size: Size) -> None:
        windows = _windows(pooling, size, bounds.upper)
        self._shape, self._is_inside = (len(bounds.upper), *size), windows >= 0
        self.n_inputs = math.prod(self._shape)
        self._windows = windows.clamp_min(0)
        self._lower = bounds.lower.flatten(1)
        at_least, at_most = self._lower[..., None], bounds.upper.flatten(1)[..., None]
        nowhere = at_most.new_full((len(at_most), math.prod(size)), math.inf)
        upper = self._scattered(nowhere, torch.where(self._is_inside, at_most, math.inf), "amin")
        may_be_largest = self._is_inside & (self._gathered(upper) >= at_least)
        is_equal = (self._is_inside & (self._gathered(upper) == at_least)).to(upper.dtype)
        n_equal = self._gathered(self._scattered(torch.zeros_like(upper), is_equal, "sum"))
        n_equal = torch.where(may_be_largest, n_equal, -1)
        self._upper = upper
        self._may_be_largest = may_be_largest & (n_equal == n_equal.amax(-1, keepdim=True))

    def bounds_at(self, z: Tensor) -> Bounds:
        """Bound all inputs, taking the largest one that may be it in each window of `z` for the one that is.

        Args:
            z: an estimate of the inputs, shape `(C, *size)` or flat.
        """
        inputs = z.reshape(len(self._upper), -1)
        values = torch.where(self._may_be_largest, self._gathered(inputs), -math.inf)
        largest = self._windows.expand(values.shape).gather(-1, values.argmax(-1, keepdim=True))[..., 0]
        lower = torch.full_like(self._upper, -math.inf).scatter_reduce(1, largest, self._lower, "amax")
        lower = torch.minimum(lower, self._upper)
        return Bounds(lower.reshape(self._shape), self._upper.reshape(self._shape))

    def _gathered(self, inputs: Tensor) -> Tensor:
        """List what the windows look at, for inputs of shape `(C, n)`: shape `(C, n_windows, k)`."""
        return inputs[:, self._windows]

    def _scattered(self, inputs: Tensor, values: Tensor, how: str) -> Tensor:
        """Reduce values of the windows, shape `(C, n_windows, k)`, to inputs of shape `(C, n)`."""
        places = self._windows.flatten().expand(len(inputs), -1)
        return inputs.scatter_reduce(1, places, values.expand(-1, *self._windows.shape).flatten(1), how)


def _windows(pooling: MaxPooling, size: Size, like: Tensor) -> Tensor:
    """Number the inputs of each window, shape `(n_windows, k)`; −1 stands for one outside."""
    numbers = torch.arange(math.prod(size), dtype=torch.float64 if like.device.type != "mps" else like.dtype)
    windows = pooling_windows(
        len(size),
        numbers.to(like.device).reshape(1, 1, *size),
        pooling.kernel_size,
        pooling.stride,
        pooling.padding,
        pooling.dilation,
        pooling.ceil_mode,
    )
    return windows.flatten(0, -2).clamp_min(-1).long()
