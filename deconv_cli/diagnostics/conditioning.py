"""What a kernel lets through on the torus of the image, and what the estimator makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.torus_modes import TorusModes, symbol_at
from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.spectrum import single_threaded, singular_values
from deconv_cli.vocabulary import Size

# A map finer than this along either axis shows nothing more.
MAX_MAP = 192
MAX_MAP_OPERATIONS = 1e8


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The singular values of the kernel on a torus, and what they make of noise.

    Counts and shares are those of one image; channels that a kernel treats alike are one image each.

    Attributes:
        sigma_max: the largest singular value of the frequencies looked at.
        sigma_min: the smallest.
        threshold: singular values up to here count as zero.
        rank: how many are above it.
        n_values: how many there are.
        noise_gain: root mean square of the estimate of unit white noise: how much stronger noise comes back.
        degrees_of_freedom: Σ σ² / (σ² + μ|l|²), how many numbers of the estimate the data decide.
        n_unknowns: how many numbers the estimate has.
        n_data: how many numbers the data have.
        is_sampled: a part of the frequencies stands for all.
    """

    sigma_max: float
    sigma_min: float
    threshold: float
    rank: int
    n_values: int
    noise_gain: float
    degrees_of_freedom: float
    n_unknowns: int
    n_data: int
    is_sampled: bool


def measure_conditioning(modes: TorusModes, *, weight: float, penalty: str, rcond: float) -> Conditioning:
    """Describe a kernel and its regularized inverse by the kernel's modes.

    Args:
        modes: of the kernel on the torus of the image.
        weight: μ = λσ²max; 0 for the pseudo-inverse.
        penalty: which L.
        rcond: singular values up to this fraction of the largest count as zero.
    """
    sigma, n_points = modes.sigma, modes.torus[0] * modes.torus[1]
    largest = synchronize.as_number(sigma.max())
    threshold = rcond * largest
    gain = estimator_gain(modes, weight=weight, penalty=penalty, threshold=threshold)
    weights = modes.weights[..., None]
    n_unknowns = modes.vh.shape[-1] * n_points
    return Conditioning(
        sigma_max=largest,
        sigma_min=synchronize.as_number(sigma.min()),
        threshold=threshold,
        rank=round(synchronize.as_number((weights * (sigma > threshold)).sum())),
        n_values=sigma.shape[-1] * n_points,
        noise_gain=(synchronize.as_number((weights * gain.square()).sum()) / n_unknowns) ** 0.5,
        degrees_of_freedom=synchronize.as_number((weights * gain * sigma).sum()),
        n_unknowns=n_unknowns,
        n_data=modes.u.shape[-2] * n_points,
        is_sampled=not modes.is_complete,
    )


def estimator_gain(modes: TorusModes, *, weight: float, penalty: str, threshold: float) -> Tensor:
    """Compute what the inverse does along each mode: σ / (σ² + μ|l|²), shape `(R, C, m)`.

    What neither the kernel nor the penalty sees, and for μ = 0 what is not above the threshold, is left at zero.
    """
    sigma = modes.sigma
    denominator = sigma.square() + weight * modes.squared_penalty(penalty)
    is_kept = sigma > threshold if weight == 0 else denominator > 0
    return torch.where(is_kept, sigma / torch.where(is_kept, denominator, 1), 0)


def null_share_of_outputs(modes: TorusModes, images: Tensor, threshold: float) -> float:
    """Tell which part of the energy of outputs no image explains: 1 − ‖UᴴY‖² / ‖Y‖² over singular values that count.

    Args:
        modes: on the torus of the outputs.
        images: shape `(*batch, C_out, N1, N2)`.
        threshold: singular values up to here count as zero.
    """
    return _null_share(modes, modes.of_outputs(images), modes.energy(images), threshold)


def null_share_of_inputs(modes: TorusModes, images: Tensor, threshold: float) -> float:
    """Tell which part of the energy of images `(*batch, C_in, N1, N2)` the kernel does not let through."""
    return _null_share(modes, modes.of_inputs(images), modes.energy(images), threshold)


def _null_share(modes: TorusModes, coefficients: Tensor, energy: Tensor, threshold: float) -> float:
    squares = torch.view_as_real(coefficients).square().sum(-1)
    seen = synchronize.as_number((modes.weights[..., None] * torch.where(modes.sigma > threshold, squares, 0)).sum())
    whole = synchronize.as_number((modes.weights * energy).sum())
    return max(1 - seen / whole, 0.0) if whole > 0 else 0.0


def gain_map(taps: Tensor, image_size: Size) -> Tensor:
    """Map the largest and the smallest singular value over the whole plane of frequencies, zero in the middle.

    Args:
        taps: shape `(C_out, C_in, kH, kW)`.
        image_size: of the torus; a large one is looked at on a coarser grid.

    Returns:
        Shape `(2, n1, n2)`, at the frequencies of `fftshift(fftfreq(n))` cycles a pixel along either axis.
    """
    wide = to_float64(taps.detach())
    n_outputs, n_inputs = wide.shape[:2]
    affordable = MAX_MAP_OPERATIONS / max(n_outputs * n_inputs * min(n_outputs, n_inputs), 1)
    side = max(int(min(MAX_MAP, affordable**0.5)), 8)
    grid = (min(image_size[0], side), min(image_size[1], side))
    rows, columns = (torch.arange(n, device=wide.device) - n // 2 for n in grid)
    with single_threaded(wide.device):
        values = singular_values(symbol_at(wide, grid, rows % grid[0], columns % grid[1]))
    return torch.stack([values.amax(-1), values.amin(-1)])
