"""What a kernel passes on the torus of the image, and what its regularized inverse makes of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.inverse_filter import InverseFilter
from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.diagnostics.torus_modes import TorusModes, symbol_at, torus_modes
from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.spectrum import single_threaded, singular_values
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.vocabulary import Size

# A map finer than this along any axis shows nothing more.
MAX_MAP = 192
MAX_MAP_OPERATIONS = 1e8


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The singular values of the kernel on a torus, and what the inverse makes of noise.

    Counts and shares are those of one image; channels that share a kernel are one image each.

    Attributes:
        sigma_max: the largest singular value of the frequencies looked at.
        sigma_min: the smallest.
        threshold: singular values up to here count as zero.
        rank: how many are above it.
        n_values: how many there are.
        noise_gain: root mean square of the estimate of unit white noise: how much stronger noise comes back.
        degrees_of_freedom: Σ σ² / (σ² + μ|l|²), how many numbers of the estimate the data decide.
        n_unknowns: how many numbers the estimate has.
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
    is_sampled: bool


def measure_conditioning(modes: TorusModes, inverse: InverseFilter) -> Conditioning:
    """Describe a kernel and its regularized inverse by the kernel's modes on the torus of the image."""
    sigma, n_points = modes.sigma, math.prod(modes.torus)
    threshold = inverse.threshold(modes)
    weights = modes.weights[..., None]
    n_unknowns = modes.vh.shape[-1] * n_points
    return Conditioning(
        sigma_max=synchronize.as_number(sigma.max()),
        sigma_min=synchronize.as_number(sigma.min()),
        threshold=threshold,
        rank=round(synchronize.as_number((weights * (sigma > threshold)).sum())),
        n_values=sigma.shape[-1] * n_points,
        noise_gain=inverse.noise_gain(modes),
        degrees_of_freedom=synchronize.as_number((weights * inverse.passed(modes)).sum()),
        n_unknowns=n_unknowns,
        is_sampled=not modes.is_complete,
    )


@dataclass(frozen=True)
class LostDirections:
    """The directions of the input that leave no trace in the data.

    Attributes:
        n_lost: how many there are, or at least are.
        n_unknowns: numbers of the input.
        is_exact: all of them were counted.
    """

    n_lost: int
    n_unknowns: int
    is_exact: bool

    @property
    def sentence(self) -> str:
        """The count with what it means, without a full stop."""
        least = "" if self.is_exact else "at least "
        count = f"{least}{self.n_lost} of {self.n_unknowns} directions of the input"
        return f"{count} leave no trace in the data: the part of the input along them cannot be had back"


def count_lost_directions(inverse: PseudoInverse) -> LostDirections:
    """Count the directions that the data lose by the rank of the matrix, or of the kernel's symbol if that is unknown.

    The symbol counts all on a torus. Under another boundary, or for λ > 0, it counts what every frequency loses.
    """
    operator, geometry, taps = inverse.operator, inverse.geometry, inverse.operator.kernel
    n_unknowns = math.prod(operator.input_shape)
    if inverse.rank is not None:
        return LostDirections(n_unknowns - inverse.rank, n_unknowns, is_exact=True)
    n_pixels = min(math.prod(geometry.image_size), math.prod(geometry.output_size))
    if inverse.problem.lam > 0 or operator.is_layer:
        rank = min(math.prod(operator.output_shape), n_unknowns)
        return LostDirections(n_unknowns - rank, n_unknowns, is_exact=False)
    modes = torus_modes(taps, geometry.image_size)
    found = measure_conditioning(modes, InverseFilter(0.0, inverse.problem.penalty, default_rcond(taps.dtype)))
    if operator.boundary.is_periodic and geometry.image_size == geometry.output_size and modes.is_complete:
        return LostDirections(n_unknowns - found.rank, n_unknowns, is_exact=True)
    rank = synchronize.as_index((modes.sigma > found.threshold).sum(dim=-1).max())
    return LostDirections(n_unknowns - rank * n_pixels, n_unknowns, is_exact=False)


def null_share_of_outputs(modes: TorusModes, images: Tensor, threshold: float) -> float:
    """Compute which part of the energy of outputs no image explains: 1 − ‖UᴴY‖² / ‖Y‖² over singular values that count.

    Args:
        modes: on the torus of the outputs.
        images: shape `(*batch, C_out, N1, N2, ...)`.
        threshold: singular values up to here count as zero.
    """
    spectrum = modes.transformed(images)
    return _null_share(modes, modes.of_outputs(spectrum), modes.energy(spectrum), threshold)


def null_share_of_inputs(modes: TorusModes, images: Tensor, threshold: float) -> float:
    """Compute which part of the energy of images `(*batch, C_in, N1, N2, ...)` lies in the kernel's null space."""
    spectrum = modes.transformed(images)
    return _null_share(modes, modes.of_inputs(spectrum), modes.energy(spectrum), threshold)


def _null_share(modes: TorusModes, coefficients: Tensor, energy: Tensor, threshold: float) -> float:
    squares = squared_modulus(coefficients)
    passed = synchronize.as_number((modes.weights[..., None] * torch.where(modes.sigma > threshold, squares, 0)).sum())
    whole = synchronize.as_number((modes.weights * energy).sum())
    return max(1 - passed / whole, 0.0) if whole > 0 else 0.0


def gain_map(taps: Tensor, image_size: Size) -> Tensor:
    """Map the largest and the smallest singular value over all frequencies, zero in the middle.

    Args:
        taps: shape `(C_out, C_in, *k)`.
        image_size: of the torus; a large one is looked at on a coarser grid.

    Returns:
        Shape `(2, n1, n2, ...)`, at the frequencies of `fftshift(fftfreq(n))` cycles a pixel along each axis.
    """
    wide = to_float64(taps.detach())
    n_outputs, n_inputs = wide.shape[:2]
    affordable = MAX_MAP_OPERATIONS / max(n_outputs * n_inputs * min(n_outputs, n_inputs), 1)
    side = max(int(min(MAX_MAP, affordable ** (1 / len(image_size)))), 8)
    grid = tuple(min(n, side) for n in image_size)
    frequencies = tuple((torch.arange(n, device=wide.device) - n // 2) % n for n in grid)
    with single_threaded(wide.device):
        values = singular_values(symbol_at(wide, grid, frequencies))
    return torch.stack([values.amax(-1), values.amin(-1)])
