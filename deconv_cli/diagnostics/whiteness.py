"""Whether a residual is as irregular as noise: its autocorrelation, and one number for all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64

# Lags up to here along either axis.
MAX_LAG = 5


@dataclass(frozen=True, eq=False)
class Whiteness:
    """The autocorrelation of a residual, and how far it is from that of white noise.

    Attributes:
        autocorrelation: ρ(d) = Σ r[m] r[m + d] / Σ r[m]², for lags from −`max_lag` to `max_lag` along both axes, shape
            `(2·max_lag + 1, 2·max_lag + 1)`; 1 in the middle, and about 0 elsewhere for white noise.
        max_lag: the largest lag.
        largest: the largest |ρ(d)| at d ≠ 0.
        statistic: Q = Σ n(d) ρ(d)² over half of the lags, the others being their mirror images (Ljung and Box, On a
            measure of lack of fit in time series models, Biometrika 65, 1978, here over two axes).
        n_lags: how many terms it has: for white noise Q follows χ² with so many degrees of freedom.
        p_value: the probability that white noise gives a Q as large as this; 0 where it is below about 1e-300.
        z_score: Q in standard deviations from what white noise gives (Wilson and Hilferty, 1931).
    """

    autocorrelation: Tensor
    max_lag: int
    largest: float
    statistic: float
    n_lags: int
    p_value: float
    z_score: float


def measure_whiteness(residual: Tensor) -> Whiteness:
    """Test whether residuals look like white noise, all planes together.

    Args:
        residual: shape `(*batch, C, H, W)`.
    """
    planes = to_float64(residual).flatten(end_dim=-3)
    planes = planes - planes.mean(dim=(-2, -1), keepdim=True)
    height, width = planes.shape[-2:]
    lag = max(min(MAX_LAG, (min(height, width) - 1) // 2), 0)
    sums = _lagged_products(planes, lag)
    power = sums[lag, lag]
    if synchronize.as_number(power) == 0 or lag == 0:
        return Whiteness(torch.ones(2 * lag + 1, 2 * lag + 1), lag, 0.0, 0.0, 0, 1.0, 0.0)
    offsets = torch.arange(-lag, lag + 1, device=planes.device).abs()
    n_pairs = (len(planes) * (height - offsets[:, None]) * (width - offsets)).to(planes.dtype)
    # Each sum divided by the number of its terms: distant lags have fewer. Taking off the mean of a plane takes as much
    # from every product as it takes from the power, which is put back.
    n_pixels = height * width
    correlation = sums / n_pairs / (power / (len(planes) * (n_pixels - 1))) + 1 / n_pixels
    terms = (n_pairs * correlation.square()).flatten()[: (2 * lag + 1) ** 2 // 2]
    largest = synchronize.as_number(correlation.abs().flatten()[: len(terms)].max())
    statistic = synchronize.as_number(terms.sum())
    return Whiteness(
        autocorrelation=correlation,
        max_lag=lag,
        largest=largest,
        statistic=statistic,
        n_lags=len(terms),
        p_value=_chi_square_tail(statistic, len(terms)),
        z_score=_normal_score(statistic, len(terms)),
    )


def _lagged_products(planes: Tensor, lag: int) -> Tensor:
    """Sum r[m] r[m + d] over planes `(n, H, W)` for all lags up to `lag`, without wrapping around."""
    size = (planes.shape[-2] + lag, planes.shape[-1] + lag)
    power = torch.view_as_real(torch.fft.rfft2(planes, s=size)).square().sum(dim=(0, -1))
    products = torch.fft.irfft2(power.to(torch.complex64 if power.dtype == torch.float32 else torch.complex128), s=size)
    places = torch.arange(-lag, lag + 1, device=planes.device)
    return products[places % size[0]][:, places % size[1]]


def _chi_square_tail(statistic: float, n: int) -> float:
    """Add up exp(−x) xᵏ / k! for k below n / 2, where x is half the statistic: the number of lags is always even."""
    half = statistic / 2
    total = 0.0
    for k in range(n // 2):
        total += math.exp(k * math.log(half) - half - math.lgamma(k + 1)) if half > 0 else float(k == 0)
    return min(total, 1.0)


def _normal_score(statistic: float, n: int) -> float:
    variance = 2 / (9 * n)
    return ((statistic / n) ** (1 / 3) - (1 - variance)) / math.sqrt(variance)
