"""The part of an image that a kernel passes and that the data determine, and the gain of the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.torus_modes import MAX_BLOCK_OPERATIONS, InverseFilter, TorusModes, symbol_at, torus_modes
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes, squared_modulus
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.operators.spectrum import single_threaded, singular_values
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.vocabulary import Size

# More frequencies along an axis do not change the share of removed frequencies.
MAX_GRID = 192
# The response to a single pixel is local: a torus of this side holds all of it.
MAX_SIDE = 256
RULE = StoppingRule(tolerance=1e-4, max_iterations=300)
MAX_DENSE_ENTRIES = 2**20
"""The rank of a derivative is exact up to this number of entries of its matrix."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The singular values of the kernel on a torus, and what the inverse does to noise, for one image.

    Attributes:
        threshold: singular values up to this one count as zero.
        rank: how many of `n_values` are above it.
        noise_gain: root mean square of the estimate for white noise of unit variance.
        degrees_of_freedom: Σ σ² / (σ² + μ|l|²), the number of the `n_unknowns` values that the data decide.
        is_sampled: only a part of the frequencies was computed.
    """

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
    return Conditioning(
        threshold=threshold,
        rank=round(synchronize.as_number((weights * (sigma > threshold)).sum())),
        n_values=sigma.shape[-1] * n_points,
        noise_gain=inverse.noise_gain(modes),
        degrees_of_freedom=synchronize.as_number((weights * inverse.passed(modes)).sum()),
        n_unknowns=modes.vh.shape[-1] * n_points,
        is_sampled=not modes.is_complete,
    )


def removed_share(taps: Tensor, image_size: Size, limit: float) -> float:
    """Compute the share of frequencies whose smallest singular value is below `limit` times the largest of those."""
    wide = to_float64(taps.detach())
    n_outputs, n_inputs = wide.shape[:2]
    affordable = MAX_BLOCK_OPERATIONS / max(n_outputs * n_inputs * min(n_outputs, n_inputs), 1)
    side = max(int(min(MAX_GRID, affordable ** (1 / len(image_size)))), 8)
    grid = tuple(min(n, side) for n in image_size)
    numbers = tuple(torch.arange(n, device=wide.device) for n in grid)
    with single_threaded(wide.device):
        smallest = singular_values(symbol_at(wide, grid, numbers)).amin(-1)
    return synchronize.as_number((smallest < limit * smallest.max()).to(smallest.dtype).mean())


Widths = tuple[tuple[float | None, ...], ...]
"""Full widths at half maximum, in pixels: for each channel, along each axis of space; `None` if it never halves."""


def measure_resolution(taps: Tensor, image_size: Size, inverse: InverseFilter) -> Widths:
    """Measure how wide blur and inverse together make a single bright pixel; 1 is one pixel.

    The response (KᴴK + μ|l|²)⁻¹KᴴK is computed on the torus of the image, or on a smaller one that holds all of it.
    """
    n_outputs, n_inputs = taps.shape[:2]
    cost = 1 if n_outputs == n_inputs == 1 else max(n_outputs * n_inputs * min(n_outputs, n_inputs), 512)
    side = min(MAX_SIDE, max(int((MAX_BLOCK_OPERATIONS / cost) ** (1 / (taps.ndim - 2))), 8))
    torus = tuple(min(n, side) for n in image_size)
    modes = torus_modes(taps, torus, is_bounded=False)
    transfer = (squared_modulus(modes.vh) * inverse.passed(modes)[..., None]).sum(dim=-2).movedim(-1, 0)
    response = torch.fft.irfftn(transfer.to(modes.vh.dtype), s=torus, dim=space_axes(len(torus)))
    return tuple(
        tuple(_width(channel.movedim(axis, 0).reshape(n, -1)[:, 0]) for axis, n in enumerate(torus))
        for channel in response
    )


def widest(widths: Widths) -> float | None:
    """Return the largest width of all channels; `None` if one of them never falls to half."""
    values = [width for of_channel in widths for width in of_channel]
    return None if None in values else max(width for width in values if width is not None)


def _width(line: Tensor) -> float | None:
    """Find twice the distance from the peak, at index 0, at which a line falls to half of it."""
    values = synchronize.as_numbers(line[: len(line) // 2 + 1])
    half = values[0] / 2
    for at in range(1, len(values)):
        if values[at] < half:
            return 2 * (at - 1 + (values[at - 1] - half) / (values[at - 1] - values[at]))
    return None


@dataclass(frozen=True)
class LostDirections:
    """How many of `n_unknowns` directions of the input leave no trace in the data, or at least how many."""

    n_lost: int
    n_unknowns: int
    is_exact: bool

    @property
    def sentence(self) -> str:
        """The count and its meaning, without a full stop."""
        least = "" if self.is_exact else "at least "
        count = f"{least}{self.n_lost} of {self.n_unknowns} directions of the input"
        return f"{count} leave no trace in the data: the part of the input along them cannot be recovered"


def count_lost_directions(inverse: PseudoInverse) -> LostDirections:
    """Count the directions that the data lose, by the rank of the matrix or else of the kernel's symbol.

    The symbol counts all of them on a torus. Under another boundary, or for λ > 0, it counts what every frequency
    loses.
    """
    operator, geometry, taps = inverse.operator, inverse.geometry, inverse.operator.kernel
    n_unknowns = math.prod(operator.input_shape)
    if inverse.rank is not None:
        return LostDirections(n_unknowns - inverse.rank, n_unknowns, is_exact=True)
    if inverse.problem.lam > 0 or operator.is_layer:
        rank = min(math.prod(operator.output_shape), n_unknowns)
        return LostDirections(n_unknowns - rank, n_unknowns, is_exact=False)
    modes = torus_modes(taps, geometry.image_size)
    found = measure_conditioning(modes, InverseFilter(0.0, inverse.problem.penalty, default_rcond(taps.dtype)))
    if operator.boundary.is_periodic and geometry.image_size == geometry.output_size and modes.is_complete:
        return LostDirections(n_unknowns - found.rank, n_unknowns, is_exact=True)
    rank = synchronize.as_index((modes.sigma > found.threshold).sum(dim=-1).max())
    n_pixels = min(math.prod(geometry.image_size), math.prod(geometry.output_size))
    return LostDirections(n_unknowns - rank * n_pixels, n_unknowns, is_exact=False)


@dataclass(frozen=True)
class DeterminedShare:
    """The part of the `n_dimensions` of an input that the outputs determine, from 0 to 1.

    It is exact if it is the rank of the derivative. If not, it is the part of white noise that conjugate gradients
    or the inverse recover, which leaves out directions that hardly change the outputs.
    """

    share: float
    n_dimensions: int
    is_exact: bool


def determined_share(jacobian: LinearOperator, like: Tensor) -> DeterminedShare:
    """Measure the part of an input's dimensions that the outputs determine, by the derivative J at the input.

    `like` is a tensor of the input's shape, dtype and device.
    """
    n_inputs, n_outputs = math.prod(jacobian.input_shape), math.prod(jacobian.output_shape)
    if n_inputs * n_outputs <= MAX_DENSE_ENTRIES:
        rank = synchronize.as_index(torch.linalg.matrix_rank(jacobian.as_matrix()))
        return DeterminedShare(rank / n_inputs, n_inputs, is_exact=True)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    # Conjugate gradients from zero find J⁺Jv: the rest of the noise v lies in the null space of J.
    seen = iterate(NormalEquations(jacobian, jacobian.forward(noise)), RULE).value
    lost = synchronize.as_number((noise - seen).square().sum() / noise.square().sum())
    return DeterminedShare(1 - lost, n_inputs, is_exact=False)


def recovered_share(inverse: PseudoInverse) -> DeterminedShare | None:
    """Measure the part of white noise that an inverse with λ = 0 recovers from its outputs, by one solve.

    `None` if it recovers everything up to rounding. Other measures of lost directions need singular values.
    """
    operator, taps = inverse.operator, inverse.operator.kernel
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(operator.input_shape, generator=generator, dtype=torch.float64).to(taps)
    with torch.no_grad():
        found = inverse.solve(operator.forward(noise)).value.reshape(noise.shape)
    lost = synchronize.as_number((noise - found).square().sum() / noise.square().sum())
    if lost <= torch.finfo(taps.dtype).eps ** 0.5:
        return None
    return DeterminedShare(max(1 - lost, 0.0), noise.numel(), is_exact=False)
