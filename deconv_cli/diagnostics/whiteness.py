"""Whether a residual is as irregular as noise: its autocorrelation, and one number for all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, space_axes
from deconv_cli.operators.circulant import next_fast_size, phases, to_float64

# Lags up to here along either axis.
MAX_LAG = 5


@dataclass(frozen=True, eq=False)
class Whiteness:
    """The autocorrelation of a residual, and how far it is from that of white noise.

    Attributes:
        autocorrelation: ρ(d) = Σ r[m] r[m + d] / Σ r[m]², for lags from −`max_lag` to `max_lag` along each axis, shape
            `(2·max_lag + 1, ...)`; 1 in the middle, and about 0 elsewhere for white noise.
        max_lag: the largest lag.
        largest: the largest |ρ(d)| at d ≠ 0.
        statistic: Q = Σ n(d) ρ(d)² over half of the lags, the others being their mirror images (Ljung and Box, "On a
            measure of lack of fit in time series models", Biometrika 65, 1978, here over all axes).
        n_lags: how many terms it has: for white noise Q follows χ² with so many degrees of freedom.
        p_value: the probability that white noise gives a Q as large as this; 0 where it is below about 1e-300.
        z_score: Q in standard deviations from what white noise gives (Wilson and Hilferty, "The distribution
            of chi-square", Proceedings of the National Academy of Sciences 17, 1931).
    """

    autocorrelation: Tensor
    max_lag: int
    largest: float
    statistic: float
    n_lags: int
    p_value: float
    z_score: float


def measure_whiteness(residual: Tensor, n_axes: int = 2) -> Whiteness:
    """Test whether residuals look like white noise, all images and channels together.

    Args:
        residual: shape `(*batch, C, *space)`.
        n_axes: how many axes of space there are.
    """
    size = residual.shape[-n_axes:]
    axes = space_axes(n_axes)
    planes = residual.reshape(-1, *size)
    planes = planes - planes.mean(dim=axes, keepdim=True, dtype=accumulation_dtype(planes)).to(planes.dtype)
    lag = max(min(MAX_LAG, (min(size) - 1) // 2), 0)
    sums = _lagged_products(planes, lag)
    power = sums.flatten()[sums.numel() // 2]
    if synchronize.as_number(power) == 0 or lag == 0:
        return Whiteness(torch.ones([2 * lag + 1] * n_axes), lag, 0.0, 0.0, 0, 1.0, 0.0)
    n_pairs = sums.new_full((1,), len(planes))
    for length in size:
        n_pairs = n_pairs[..., None] * (length - torch.arange(-lag, lag + 1, device=planes.device).abs())
    # Each sum divided by the number of its terms: distant lags have fewer. Taking off the mean of a plane takes as much
    # from every product as it takes from the power, which is put back.
    n_pixels = math.prod(size)
    correlation = sums / n_pairs[0] / (power / (len(planes) * (n_pixels - 1))) + 1 / n_pixels
    n_lags = correlation.numel() // 2
    statistic = synchronize.as_number((n_pairs[0] * correlation.square()).flatten()[:n_lags].sum())
    return Whiteness(
        autocorrelation=correlation,
        max_lag=lag,
        largest=synchronize.as_number(correlation.abs().flatten()[:n_lags].max()),
        statistic=statistic,
        n_lags=n_lags,
        p_value=_chi_square_tail(statistic, n_lags),
        z_score=_normal_score(statistic, n_lags),
    )


def _lagged_products(planes: Tensor, lag: int) -> Tensor:
    """Sum r[m] r[m + d] over planes `(n, *space)` for all lags up to `lag`, without wrapping around.

    The transform of the power at so few lags is a product of matrices, which is faster than an FFT.
    """
    size = [next_fast_size(n + lag) for n in planes.shape[1:]]
    spectrum = torch.fft.rfftn(planes, s=size, dim=space_axes(len(size)))
    products = to_float64(squared_modulus(spectrum).sum(dim=0))
    products[..., 1 : (size[-1] + 1) // 2] *= 2  # for the frequencies that mirror these
    for length in size:
        numbers = torch.arange(len(products), device=planes.device)
        products = _contracted(products, phases(numbers, length, 2 * lag + 1, products.real, lag))
    return products.real / math.prod(size)


def _contracted(values: Tensor, waves: Tensor) -> Tensor:
    """Contract the first axis of real or complex values `(N, *rest)` with complex waves `(N, m)`: `(*rest, m)`."""
    if values.is_complex():
        return torch.tensordot(values, waves, dims=([0], [0]))
    return torch.view_as_complex(torch.tensordot(values, torch.view_as_real(waves), dims=([0], [0])))


def _chi_square_tail(statistic: float, n: int) -> float:
    """Compute Q(n/2, x) at half the statistic x, by Q(a + 1, x) = Q(a, x) + exp(−x) xᵃ / Γ(a + 1)."""
    half = statistic / 2
    if half <= 0:
        return 1.0
    total, start = (math.erfc(math.sqrt(half)), 0.5) if n % 2 else (0.0, 0.0)
    for k in range(n // 2):
        a = start + k
        total += math.exp(a * math.log(half) - half - math.lgamma(a + 1))
    return min(total, 1.0)


def _normal_score(statistic: float, n: int) -> float:
    variance = 2 / (9 * n)
    return ((statistic / n) ** (1 / 3) - (1 - variance)) / math.sqrt(variance)
