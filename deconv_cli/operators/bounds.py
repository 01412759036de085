"""Bounds on the inputs of activations and max poolings, from bounds on their outputs.

A ReLU that gives zero had an input of at most zero. A tanh that rounds to one had an input of at least the value where
it does so. Between its ends each activation has one inverse. SiLU, GELU, Mish and hard swish have one from zero upwards
only, because two inputs give the same value below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deconv_cli.operators import synchronize
from deconv_cli.operators.smoothing import pooling_windows
from deconv_cli.vocabulary import Size


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds of each output, of one shape: -inf and inf where nothing is known, equal where the output is known."""

    lower: Tensor
    upper: Tensor

    @classmethod
    def exactly(cls, y: Tensor) -> Bounds:
        """Bounds of outputs that are known."""
        return cls(y, y)

    @property
    def known(self) -> Tensor:
        """Where the output is known."""
        return self.lower == self.upper

    def nearest(self, z: Tensor) -> Tensor:
        """Cut `z` to the bounds."""
        return torch.minimum(torch.maximum(z, self.lower), self.upper)

    def shifted(self, by: Tensor) -> Bounds:
        """Add a tensor to both bounds."""
        return Bounds(self.lower + by, self.upper + by)

    def to(self, dtype: torch.dtype) -> Bounds:
        """Give the same in another precision."""
        return Bounds(self.lower.to(dtype), self.upper.to(dtype))


Elementwise = Callable[[Tensor], Tensor]

N_BISECTIONS = 60
TINY = 1e-37
"""The smallest normal number of float32, or so."""


@dataclass(frozen=True)
class Activation:
    """An increasing function and its inverse on the range between two values.

    Attributes:
        inverse: of values from `low` to `high`.
        low: from this value down the input is only known to be at most `inverse(low)`.
        high: from this value up the input is only known to be at least `inverse(high)`.
        ends: of the values that the function can have; beyond them no input gives the value.
        is_monotone: whether the function has no other inputs with values below `low`.
    """

    inverse: Elementwise
    low: float = -math.inf
    high: float = math.inf
    ends: tuple[float, float] = (-math.inf, math.inf)
    is_monotone: bool = True

    def undo(self, bounds: Bounds, slack: float = 0.0) -> Bounds:
        """Turn bounds of values into bounds of inputs.

        Args:
            bounds: of the values.
            slack: values this near to an end count as at it.
        """
        lower, upper = (self.inverse(value.clamp(self.low, self.high)) for value in (bounds.lower, bounds.upper))
        lower = torch.where(bounds.lower <= self.low + slack, -math.inf, lower)
        upper = torch.where(bounds.upper >= self.high - slack, math.inf, upper)
        return Bounds(lower, upper)

    def says_all(self, bounds: Bounds) -> bool:
        """Return whether the bounds of the inputs say all that those of the values do."""
        return self.is_monotone or synchronize.holds_everywhere(bounds.lower >= self.low)

    def n_impossible(self, bounds: Bounds) -> int:
        """Count the values that no input gives."""
        low, high = self.ends
        return synchronize.as_index(((bounds.upper < low) | (bounds.lower > high)).sum())


@dataclass(frozen=True)
class FoldedActivation(Activation):
    """A PReLU with slopes below zero, where two inputs of opposite sign give the same value, or of zero.

    Attributes:
        slopes: one for each channel, or one for all.
    """

    slopes: Tensor = field(kw_only=True)

    def undo(self, bounds: Bounds, slack: float = 0.0) -> Bounds:
        """Turn bounds of values into bounds of inputs: between the two that give the value, where there are two."""
        slopes, plain = _along_channels(self.slopes, bounds.lower), super().undo(bounds, slack)
        largest = bounds.upper.clamp_min(0)
        lower = torch.where(slopes < 0, largest / slopes.clamp_max(-TINY), plain.lower)
        # A slope of zero is a ReLU's.
        lower = torch.where((slopes == 0) & (bounds.lower <= slack), -math.inf, lower)
        return Bounds(lower, torch.where(slopes < 0, largest, plain.upper))

    def says_all(self, bounds: Bounds) -> bool:
        """Return that they do not, since one of the two inputs is the right one."""
        return False


def activation_of(module: nn.Module, eps: float) -> Activation | None:
    """Give the inverse of an activation of torch; `None` for other modules, and for those that do not increase.

    Args:
        module: a layer in evaluation mode.
        eps: the relative distance of neighboring numbers in the type of the data.
    """
    make = _ACTIVATIONS.get(type(module))
    return None if make is None else make(module, eps)


def _hardtanh(module: nn.Module, eps: float) -> Activation:
    assert isinstance(module, nn.Hardtanh)
    low, high = float(module.min_val), float(module.max_val)
    return Activation(lambda y: y, low, high, (low, high))


def _leaky_relu(module: nn.Module, eps: float) -> Activation | None:
    assert isinstance(module, nn.LeakyReLU)
    slope = module.negative_slope
    return Activation(lambda y: torch.where(y >= 0, y, y / slope)) if slope > 0 else None


def _prelu(module: nn.Module, eps: float) -> Activation | None:
    assert isinstance(module, nn.PReLU)
    slopes = module.weight.detach()

    def inverse(y: Tensor) -> Tensor:
        return torch.where(y >= 0, y, y / _along_channels(slopes, y).clamp_min(TINY))

    if synchronize.holds_anywhere(slopes <= 0):
        return FoldedActivation(inverse, is_monotone=False, slopes=slopes)
    return Activation(inverse)


def _along_channels(slopes: Tensor, like: Tensor) -> Tensor:
    """Shape one number for each channel to multiply an image `(C, *size)` by."""
    return slopes.to(like).reshape(-1, *[1] * (like.ndim - 1)) if len(slopes) > 1 else slopes.to(like)


def _elu(alpha: float, scale: float, rate: float, eps: float) -> Activation | None:
    """Invert scale · (x, or alpha·(exp(x / rate) − 1) below zero)."""
    if alpha <= 0:
        return None
    low = -alpha * scale

    def inverse(y: Tensor) -> Tensor:
        return torch.where(y >= 0, y / scale, rate * torch.log1p(y.clamp_max(0) / (alpha * scale)))

    return Activation(inverse, low=low * (1 - eps), ends=(low, math.inf))


def _softplus(module: nn.Module, eps: float) -> Activation:
    assert isinstance(module, nn.Softplus)
    beta, threshold = float(module.beta), float(module.threshold)

    def inverse(y: Tensor) -> Tensor:
        scaled = beta * y
        return torch.where(scaled > threshold, y, (scaled + torch.log(-torch.expm1(-scaled))) / beta)

    return Activation(inverse, low=TINY, ends=(0.0, math.inf))


def _gate(least: float) -> Callable[[nn.Module, float], Activation]:
    """Invert x·gate(x) from zero upwards, where the gate is at least a half, by bisection between y and 2y."""

    def make(module: nn.Module, eps: float) -> Activation:
        def inverse(y: Tensor) -> Tensor:
            low, high = y, 2 * y
            for _ in range(N_BISECTIONS):
                middle = 0.5 * (low + high)
                is_below = module(middle.clone()) < y
                low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
            return 0.5 * (low + high)

        return Activation(inverse, low=0.0, ends=(least, math.inf), is_monotone=False)

    return make


_ACTIVATIONS: dict[type, Callable[..., Activation | None]] = {
    nn.ReLU: lambda module, eps: Activation(lambda y: y, low=0.0, ends=(0.0, math.inf)),
    nn.ReLU6: _hardtanh,
    nn.Hardtanh: _hardtanh,
    nn.Hardsigmoid: lambda module, eps: Activation(lambda y: 6 * y - 3, 0.0, 1.0, (0.0, 1.0)),
    nn.LeakyReLU: _leaky_relu,
    nn.PReLU: _prelu,
    nn.ELU: lambda module, eps: _elu(module.alpha, 1.0, 1.0, eps),
    nn.CELU: lambda module, eps: _elu(module.alpha, 1.0, module.alpha, eps),
    nn.SELU: lambda module, eps: _elu(1.6732632423543772, 1.0507009873554805, 1.0, eps),
    nn.Tanh: lambda module, eps: Activation(torch.atanh, eps - 1, 1 - eps, (-1.0, 1.0)),
    nn.Sigmoid: lambda module, eps: Activation(torch.logit, TINY, 1 - eps, (0.0, 1.0)),
    nn.Softsign: lambda module, eps: Activation(lambda y: y / (1 - y.abs()), eps - 1, 1 - eps, (-1.0, 1.0)),
    nn.Softplus: _softplus,
    nn.LogSigmoid: lambda module, eps: Activation(
        lambda y: y - torch.log(-torch.expm1(y)), high=-TINY, ends=(-math.inf, 0.0)
    ),
    nn.SiLU: _gate(-0.2785),
    nn.GELU: _gate(-0.1701),
    nn.Mish: _gate(-0.3089),
    nn.Hardswish: _gate(-0.375),
}


MaxPooling = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d


class PooledInputs:
    """The inputs of a max pooling whose outputs lie within bounds.

    No input is larger than the least upper bound of its windows. In each window with a lower bound, one input is at
    least that large. Which one is unknown, but its upper bound is not below. Where overlapping windows have the same
    output, they share that input.

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
        """Bound all inputs, assuming that the largest candidate of each window in `z` is its largest input.

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
