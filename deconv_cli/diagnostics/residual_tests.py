"""Tests of a residual against the noise, by place and by frequency, and what they point to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.hann_window import FadedImages
from deconv_cli.diagnostics.mode_bands import ModeBands
from deconv_cli.diagnostics.noise_level import NORMAL_MEDIAN, estimate_noise_of_blurred
from deconv_cli.diagnostics.noise_spectrum import interpolated
from deconv_cli.diagnostics.residual import BorderBand, border_profile
from deconv_cli.diagnostics.residual_finding import ResidualFinding
from deconv_cli.diagnostics.torus_modes import TorusModes
from deconv_cli.diagnostics.whiteness import Whiteness, measure_whiteness
from deconv_cli.noise_model import WHITE, NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, space_axes
from deconv_cli.vocabulary import Size

# Noise in the estimate is called fitted if it is above this part of the data's own contrast, and above so many times
# the noise in the data.
VISIBLE = 0.2
AMPLIFIED = 3.0
# A residual rms above this multiple of the noise holds something else.
EXCESS = 1.25
# The edge is out of line if its residual is so many times that of the interior.
EDGE_EXCESS = 2.0
# The image would have to be so many times stronger in what is left over than in what the data decide.
IMPLAUSIBLE = 2.0
# A part of the excess over noise that points to the kernel.
SUSPICIOUS = 0.25
# A residual rms below this part of the noise says nothing: the estimate has taken up whatever there was.
TAKEN_UP = 0.4
# Without a noise level: a part of the data that is too large for noise.
NOTABLE = 0.01
N_BINS = 61
# An estimate shows mostly noise if noise is more than this part of its usual variance, and of the data's contrast.
MOSTLY_NOISE = 0.5


@dataclass(frozen=True)
class Histogram:
    """How the residual is distributed.

    Attributes:
        edges: of the bins, in the units of the samples; samples beyond are counted in the outermost bins.
        counts: samples of each bin, one number fewer.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ResidualTests:
    """A residual looked at from several sides; what no verdict needs is computed where it is asked for.

    Attributes:
        finding: what it points to.
        noise: standard deviation of the noise in the data, in the units of the samples; `None` if it is unknown.
        model: what kind of noise that is.
        interior_rms: root mean square of the residual away from the edges.
        edge_ratio: the largest at one distance from the edge, up to a kernel's width, divided by that of the interior.
        residual: y − Ax̂, shape `(*batch, C_out, *space)`.
        data: y, shape `(n, C_out, *space)`.
        bands: modes of the kernel on the torus of the data, and what made the estimate as a filter.
        kernel_size: taps along each axis of space.
        known_share: `implausible_share`, where the verdict needed it.
    """

    finding: ResidualFinding
    noise: float | None
    model: NoiseModel
    interior_rms: float
    edge_ratio: float
    residual: Tensor
    data: Tensor
    bands: ModeBands
    kernel_size: Size
    known_share: float | None

    @property
    def is_noise_given(self) -> bool:
        """Whether the noise was given by the user, not estimated."""
        return self.model.is_sigma_given

    @cached_property
    def whiteness(self) -> Whiteness:
        """Its autocorrelation, away from the edges, once noise that is known to be colored was made white."""
        n_axes = len(self.kernel_size)
        return measure_whiteness(_whitened(_inside(self.residual, self.kernel_size), self.model, n_axes), n_axes)

    @cached_property
    def histogram(self) -> Histogram:
        """Its distribution, away from the edges."""
        return _histogram(_inside(self.residual, self.kernel_size), self.interior_rms)

    @cached_property
    def implausible_share(self) -> float:
        """Which part of the residual's excess over noise no plausible image explains under this kernel."""
        if self.known_share is not None:
            return self.known_share
        return _implausible_share(
            self.residual, FadedImages(self.data), self.bands, noise_by_mode(self.model, self.bands.modes), self.noise
        )


def check_residual(
    residual: Tensor,
    data: FadedImages,
    bands: ModeBands,
    *,
    kernel_size: Size,
    border: Sequence[BorderBand] | None = None,
    noise: NoiseModel = WHITE,
    least_noise: float = 0.0,
    is_boundary_free: bool = False,
) -> ResidualTests:
    """Test a residual, and find what it points to.

    A kernel that removes more than the true one did is found out, if λ is not so small that the estimate follows the
    data anywhere, nor so large that all is smoothed alike. One that removes less, or that only moves waves (a kernel
    turned by half a circle), leaves no trace in any residual.

    Args:
        residual: y − Ax̂, shape `(*batch, C_out, *space)`.
        data: y, less the bias if there is one; of the same shape but for a single axis of batch.
        bands: modes of the kernel on the torus of the data, and what made the estimate as a filter.
        kernel_size: taps along each axis of space.
        border: what `border_profile` gave of the residual, where it was asked before.
        noise: what kind of noise the data have, and how large it is, where that is known.
        least_noise: what is no larger than this accuses no kernel, as that of lossy compression is not white.
        is_boundary_free: nothing was assumed about what lies outside, so that the boundary cannot be at fault.
    """
    level = estimate_noise_of_blurred(data) if noise.sigma is None else noise.sigma
    interior_rms = _rms(_inside(residual, kernel_size))
    edge_ratio = _edge_ratio(residual, kernel_size, interior_rms, border)
    implausible: float | None = None
    least = NOTABLE * _contrast(data) if level is None else level
    if not is_boundary_free and edge_ratio > EDGE_EXCESS and edge_ratio * interior_rms > least:
        finding = ResidualFinding.WRONG_BOUNDARY
    elif level is None:
        finding = ResidualFinding.INCONCLUSIVE
    elif interior_rms > EXCESS * level:
        is_beyond_doubt = noise.is_sigma_given or interior_rms > EXCESS * least_noise
        implausible = _implausible_share(residual, data, bands, noise_by_mode(noise, bands.modes), level)
        if implausible <= SUSPICIOUS:
            finding = ResidualFinding.OVER_SMOOTHED
        else:
            finding = ResidualFinding.WRONG_KERNEL if is_beyond_doubt else ResidualFinding.INCONCLUSIVE
    elif (
        interior_rms < level
        and (gain := bands.noise_gain(noise_by_mode(noise, bands.modes))) > AMPLIFIED
        and gain * level > VISIBLE * _contrast(data)
    ):
        finding = ResidualFinding.NOISE_FITTED
    elif interior_rms < TAKEN_UP * level:
        finding = ResidualFinding.INCONCLUSIVE
    else:
        finding = ResidualFinding.FINE
    return ResidualTests(
        finding, level, noise, interior_rms, edge_ratio, residual, data.images, bands, kernel_size, implausible
    )


def measure_noise_ratio(
    residual: Tensor, data: FadedImages, bands: ModeBands, estimate: Tensor, noise: NoiseModel
) -> float | None:
    """Compare the noise in a linear estimate that shows mostly noise with the contrast of the data.

    The noise is found twice: where the data are lowest, and in the residual, which holds a known part of it. Exact data
    may look noisy in one of the two ways, but not in both. The contrast is that of most samples, since a few bright
    points on an even background would hide any noise between them.

    Args:
        residual: y − Ax̂, shape `(*batch, C_out, *space)`.
        data: y, less the bias if there is one; of the same shape but for a single axis of batch.
        bands: modes of the kernel on the torus of the data, and what made the estimate as a filter.
        estimate: x̂, shape `(*batch, C_in, *space)`.
        noise: what kind of noise the data have, and how large it is, where that is known.

    Returns:
        How many times as large the noise is; `None` where it is less, or not most of what the estimate shows.
    """
    level = estimate_noise_of_blurred(data) if noise.sigma is None else noise.sigma
    if level is None:
        return None
    modes, by_mode = bands.modes, noise_by_mode(noise, bands.modes)
    left = bands.mean(by_mode.flatten() * bands.lost)
    # The residual holds all noise that no image explains: of kernels with more outputs than inputs.
    part = modes.sigma.shape[-1] / modes.u.shape[-2]
    share = part * sum(left) / len(left) + 1 - part
    gain, largest = bands.noise_gain(by_mode), synchronize.as_number(bands.sigma.max())
    amplified = min(level, _rms(residual) / max(share, 1e-30) ** 0.5) * gain
    if gain * largest <= AMPLIFIED or amplified * largest <= MOSTLY_NOISE * _contrast(data):
        return None
    # The least contrast of an image that the kernel could turn into such data.
    contrast = _usual_contrast(data) / largest
    is_most = amplified**2 > MOSTLY_NOISE * _usual_contrast(FadedImages.of(estimate, data.n_axes)) ** 2
    return amplified / contrast if is_most and amplified > contrast > 0 else None


def _inside(residual: Tensor, kernel_size: Size) -> Tensor:
    """Cut off what is less than a kernel away from the edge, but never more than a quarter of a side."""
    for axis, margin in zip(space_axes(len(kernel_size)), _margins(residual, kernel_size), strict=True):
        residual = residual.narrow(axis, margin, residual.shape[axis] - 2 * margin)
    return residual


def _edge_ratio(residual: Tensor, kernel_size: Size, interior_rms: float, border: Sequence[BorderBand] | None) -> float:
    """Divide the largest rms at any one distance from the edge, up to a kernel's width, by that of the interior."""
    depth = max(_margins(residual, kernel_size))
    if depth == 0 or interior_rms == 0:
        return 1.0
    bands = border or border_profile(residual, kernel_size)
    return max(band.residual_rms for band in bands[:depth]) / interior_rms


def _margins(residual: Tensor, kernel_size: Size) -> Size:
    size = residual.shape[-len(kernel_size) :]
    return tuple(min(max(k, 2), n // 4) for k, n in zip(kernel_size, size, strict=True))


def _implausible_share(
    residual: Tensor, data: FadedImages, bands: ModeBands, by_mode: Tensor, level: float | None
) -> float:
    """Compute which part of what the residual holds beyond noise no plausible image explains.

    Along a mode the residual is (1 − f)(σx + n). Modes of like σ are taken together; if x came out several times as
    strong as it is where the data decide it, it is not a picture that was smoothed away.

    Args:
        residual: shape `(*batch, C_out, *space)`.
        data: what it is of.
        bands: modes and filter.
        by_mode: power of the noise along each mode relative to white noise of its size, shape `(*F, m)`.
        level: standard deviation of the noise; `None` if it is unknown.
    """
    modes, noise, left = bands.modes, ((level or 0.0) ** 2 * by_mode).flatten(), FadedImages.of(residual, data.n_axes)
    of_residual, of_data = (modes.power_of_outputs(images).flatten() for images in (left, data))
    reference = bands.strength(of_data)
    excess = implausible = 0.0
    n_perpendicular = modes.u.shape[-2] - modes.sigma.shape[-1]
    if n_perpendicular > 0:
        # What lies outside the range of the kernel is explained by no image at all.
        outside = (modes.energy(left.spectrum).mean(0).sum() - of_residual.sum()).clamp_min(0)
        beyond = (
            synchronize.as_number(outside)
            - n_perpendicular * synchronize.as_number(noise.sum()) / modes.sigma.shape[-1]
        )
        excess = implausible = max(beyond, 0.0)
    surpluses = bands.mean(of_residual - noise * bands.lost)
    for surplus, signal, count in zip(surpluses, bands.signal, bands.counts, strict=True):
        if surplus > 0:
            excess += surplus * count
            implausible += surplus * count if surplus > IMPLAUSIBLE**2 * reference * signal else 0.0
    return implausible / excess if excess > 0 else 0.0


def noise_by_mode(noise: NoiseModel, modes: TorusModes) -> Tensor:
    """Evaluate the power of noise along each mode, relative to white noise of its size, shape `(*F, m)`."""
    power = torch.ones_like(modes.sigma)
    return (
        power if noise.is_white else power * modes.sampled(interpolated(noise.spectrum, modes.torus, power))[..., None]
    )


def _whitened(residual: Tensor, model: NoiseModel, n_axes: int) -> Tensor:
    """Divide by the root of the noise's power at each frequency."""
    if model.is_white:
        return residual
    size, axes = tuple(residual.shape[-n_axes:]), space_axes(n_axes)
    power = interpolated(model.spectrum, size, residual)
    return torch.fft.irfftn(torch.fft.rfftn(residual, dim=axes) / power.sqrt(), s=size, dim=axes)


def _histogram(residual: Tensor, spread: float) -> Histogram:
    """Count the values of a residual up to five times their root mean square."""
    if spread == 0:
        return Histogram((-0.5, 0.5), (residual.numel(),))
    half = 5 * spread
    counts = torch.histc(residual.float().clamp(-half, half), N_BINS, -half, half)
    edges = [half * (2 * at / N_BINS - 1) for at in range(N_BINS + 1)]
    return Histogram(tuple(edges), tuple(round(count) for count in synchronize.as_numbers(counts)))


def _contrast(data: FadedImages) -> float:
    images = data.images
    return _rms(images - images.mean(dim=space_axes(data.n_axes), keepdim=True))


def _usual_contrast(data: FadedImages) -> float:
    """Estimate the contrast of most samples from the median deviation; it is at most that of all."""
    parts = list(data.images.flatten(0, 1))
    middles = synchronize.medians(parts)
    deviations = synchronize.medians([(part - middle).abs() for part, middle in zip(parts, middles, strict=True)])
    return min(math.hypot(*deviations) / math.sqrt(len(parts)) / NORMAL_MEDIAN, _contrast(data))


def _rms(a: Tensor) -> float:
    return synchronize.as_number(torch.linalg.vector_norm(a, dtype=accumulation_dtype(a))) / a.numel() ** 0.5
