"""Tests of a residual against the noise, by place and by frequency, and what they find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.noise_level import NORMAL_MEDIAN, estimate_noise_of_blurred
from deconv_cli.diagnostics.noise_spectrum import interpolated
from deconv_cli.diagnostics.residual import BorderBand, border_profile
from deconv_cli.diagnostics.spectra import LOWEST, FadedImages, frequency_grid
from deconv_cli.diagnostics.torus_modes import ModeBands, TorusModes
from deconv_cli.noise_model import WHITE, NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, space_axes
from deconv_cli.vocabulary import Size

# The estimate has fitted noise if the noise in it exceeds this part of the contrast of the data, and this multiple of
# the noise in the data.
VISIBLE = 0.2
AMPLIFIED = 3.0
# A residual rms above this multiple of the noise contains something else.
EXCESS = 1.25
# The boundary is wrong if the residual at the edge exceeds this multiple of that inside.
EDGE_EXCESS = 2.0
# A part of the noise stays in the residual. A residual of more than the first number times this part shows a wrong
# kernel too, if more than the second number of the excess is implausible. Right kernels stay below 1.26; wrong ones
# reach 1.3 to 25 if the picture has detail where they are zero (ten pictures of 16 bits; judged on eight others).
MORE_THAN_LEFT, CLEARLY_IMPLAUSIBLE = 1.4, 0.5
# No plausible image is this many times stronger in the modes of the residual than in the modes that the data decide.
IMPLAUSIBLE = 2.0
# The kernel is wrong if this part of the excess over the noise is implausible.
SUSPICIOUS = 0.25
# A residual rms below this part of the noise shows nothing: the estimate contains most of the noise.
TAKEN_UP = 0.4
# Where the noise is unknown, a residual above this part of the contrast is no noise.
NOTABLE = 0.01
# An estimate shows mostly noise if noise makes up this part of its usual variance, and of the contrast of the data.
MOSTLY_NOISE = 0.5
# Noise above this part of the contrast of the estimate, bright points included, drowns those too. In 13 of 14 simulated
# fields of stars the right kernel left less; 12 of 14 kernels that were at least 20 % too wide left more.
DROWNING = 0.45


# Where the kernel leaves less than the first part of the power, a ring of frequencies rises if it has more than the
# second multiple of the power of any lower one.
WEAKENED, RISES = 0.25, 2.0
# The most rings, and the fewest samples of the shortest axis for each ring.
MAX_RINGS, SAMPLES_A_RING = 96, 4


class ResidualFinding(StrEnum):
    """What a residual shows; `sentence` puts it into words."""

    FINE = "fine"
    OVER_SMOOTHED = "over-smoothed"
    NOISE_FITTED = "noise fitted"
    WRONG_KERNEL = "wrong kernel"
    WRONG_BOUNDARY = "wrong boundary"
    INCONCLUSIVE = "inconclusive"

    @property
    def sentence(self) -> str:
        """The finding and what to do, as a sentence without its full stop."""
        return _SENTENCES[self]

    @property
    def is_warning(self) -> bool:
        """Whether something is wrong."""
        return self not in (ResidualFinding.FINE, ResidualFinding.INCONCLUSIVE)

    @property
    def is_rejection(self) -> bool:
        """Whether the residual contradicts the model itself, so that no λ gives a trustworthy result."""
        return self in (ResidualFinding.WRONG_KERNEL, ResidualFinding.WRONG_BOUNDARY)


_SENTENCES = {
    ResidualFinding.FINE: (
        "the residual is no larger than the noise: nothing contradicts the kernel, the boundary or the smoothing"
    ),
    ResidualFinding.OVER_SMOOTHED: (
        "the residual still contains detail of the picture that the kernel passes: the estimate is over-smoothed, and "
        "a smaller λ would recover more"
    ),
    ResidualFinding.NOISE_FITTED: (
        "the residual is smaller than the noise: the estimate fits the noise and amplifies it; use a larger λ. If λ "
        "was chosen from the data, check the kernel too: a kernel that is too wide leads to a small λ"
    ),
    ResidualFinding.WRONG_KERNEL: (
        "the data contain frequencies that this kernel nearly removes, so no plausible picture explains them: the "
        "kernel is probably wrong"
    ),
    ResidualFinding.WRONG_BOUNDARY: (
        "the residual is much larger along the edges than inside: the assumed boundary is probably wrong; try "
        'boundary="unknown"'
    ),
    ResidualFinding.INCONCLUSIVE: (
        "the residual neither confirms nor contradicts the kernel: the estimate contains most of the noise, or "
        "the noise cannot be separated from the picture itself"
    ),
}


@dataclass(frozen=True, eq=False)
class ResidualTests:
    """What the tests of a residual found; the rest is computed on demand.

    Attributes:
        finding: the finding.
        noise: standard deviation of the noise in the data, in the units of the samples; `None` if it is unknown.
        model: the kind of noise.
        interior_rms: root mean square of the residual away from the edges.
        edge_ratio: the largest at one distance from the edge, up to a kernel's width, divided by that inside.
        residual: y − Ax̂, shape `(*batch, C_out, *space)`.
        data: y, shape `(n, C_out, *space)`.
        bands: modes of the kernel on the torus of the data, and the filter that made the estimate.
        kernel_size: taps along each axis of space.
        known_share: `implausible_share`, if the finding needed it.
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

    @cached_property
    def rms_of_noise(self) -> float:
        """The rms that the noise leaves in the residual, since the estimate contains a part of it; 0 if unknown."""
        return (self.noise or 0.0) * _share_of_noise(self.bands, noise_by_mode(self.model, self.bands.modes)) ** 0.5

    @property
    def is_noise_given(self) -> bool:
        """Whether the noise was given by the user, not estimated."""
        return self.model.is_sigma_given

    @cached_property
    def implausible_share(self) -> float:
        """The part of the residual's excess over the noise that no plausible image explains under this kernel."""
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
    """Test a residual y − Ax̂ `(*batch, C_out, *space)` of data y without the bias, and find what it shows.

    A kernel that removes more than the true one is found, unless λ is so small that the estimate follows the data
    everywhere, or so large that everything is smoothed alike. A kernel that removes less, or is the true one turned by
    half a circle, leaves no trace in any residual.

    The border profile of the residual is computed if it is not given. A residual up to the size `least_noise` does not
    show a wrong kernel: lossy compression leaves colored noise. If `is_boundary_free`, nothing was assumed about the
    outside, so the boundary cannot be wrong.
    """
    level = estimate_noise_of_blurred(data) if noise.sigma is None else noise.sigma
    interior_rms, by_mode = _rms(_inside(residual, kernel_size)), noise_by_mode(noise, bands.modes)
    edge_ratio = _edge_ratio(residual, kernel_size, interior_rms, border)
    implausible, share = None, _share_of_noise(bands, by_mode)
    least = NOTABLE * _contrast(data) if level is None else level
    if not is_boundary_free and edge_ratio > EDGE_EXCESS and edge_ratio * interior_rms > least:
        finding = ResidualFinding.WRONG_BOUNDARY
    elif level is None:
        finding = ResidualFinding.INCONCLUSIVE
    elif interior_rms > EXCESS * level:
        is_beyond_doubt = noise.is_sigma_given or interior_rms > EXCESS * least_noise
        implausible = _implausible_share(residual, data, bands, by_mode, level)
        if implausible <= SUSPICIOUS:
            finding = ResidualFinding.OVER_SMOOTHED
        else:
            finding = ResidualFinding.WRONG_KERNEL if is_beyond_doubt else ResidualFinding.INCONCLUSIVE
    elif (
        interior_rms > MORE_THAN_LEFT * (level if noise.is_white else max(level, least_noise)) * share**0.5
        and (implausible := _implausible_share(residual, data, bands, by_mode, level)) > CLEARLY_IMPLAUSIBLE
    ):
        finding = ResidualFinding.WRONG_KERNEL
    elif (
        interior_rms < level
        and (gain := bands.inverse.noise_gain(bands.modes, by_mode)) > AMPLIFIED
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
) -> tuple[float | None, bool]:
    """Divide the noise in a linear estimate by the contrast of the data; `None` if it is less than the contrast.

    It is also `None` if the estimate shows the picture. The second value is whether the noise drowns bright points too.

    The noise is measured twice: in the weakest frequencies of the data, and in the residual, which contains a known
    part of it. Exact data may look noisy in one of the two, but not in both. The contrast is that of most samples: a
    few bright points on an even background would hide any noise between them. See `check_residual` for the arguments.
    """
    level = estimate_noise_of_blurred(data) if noise.sigma is None else noise.sigma
    if level is None:
        return None, False
    by_mode = noise_by_mode(noise, bands.modes)
    share = _share_of_noise(bands, by_mode)
    gain, largest = bands.inverse.noise_gain(bands.modes, by_mode), synchronize.as_number(bands.sigma.max())
    amplified = min(level, _rms(residual) / max(share, 1e-30) ** 0.5) * gain
    if gain * largest <= AMPLIFIED or amplified * largest <= MOSTLY_NOISE * _contrast(data):
        return None, False
    # The least contrast of an image that the kernel could turn into such data.
    contrast = _usual_contrast(data) / largest
    image = FadedImages.of(estimate, data.n_axes)
    is_most = amplified**2 > MOSTLY_NOISE * _usual_contrast(image) ** 2
    if not is_most or not amplified > contrast > 0:
        return None, False
    return amplified / contrast, amplified > DROWNING * _contrast(image)


def measure_rise(estimate: Tensor, data: FadedImages, modes: TorusModes) -> float:
    """Compute the share of an estimate's power in rings of frequency that rise where the kernel is weak.

    The power of pictures falls with frequency (Field, "Relations between the statistics of natural images and the
    response properties of cortical cells", Journal of the Optical Society of America A 4, 1987), or is even for points
    of light. A kernel that is too wide is weak at frequencies that the true blur keeps, and the estimate has too much
    there. A pattern that repeats, such as lines of text, rises in the data too, and does not count. Estimate and data
    have the size of the torus of the modes.
    """
    n_axes = len(modes.torus)
    image = FadedImages.of(estimate - estimate.mean(space_axes(n_axes), keepdim=True), n_axes)
    frequencies = modes.sampled(frequency_grid(modes.torus, modes.weights).movedim(-1, 0))
    radius = torch.linalg.vector_norm(frequencies, dim=0) / (2 * math.pi)
    n_rings = min(MAX_RINGS, max(min(modes.torus) // SAMPLES_A_RING, 1))
    ring = (radius * (2 * n_rings / math.sqrt(n_axes))).long().clamp_max(n_rings - 1).flatten()
    weights = modes.weights * (radius >= LOWEST)

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(n_rings).scatter_add(0, ring, (weights * values).flatten())

    counts = sums(torch.ones_like(weights))
    used = counts > 0
    powers = [sums(modes.energy(images.spectrum).mean(0))[used] / counts[used] for images in (image, data)]
    rises, rises_in_data = (power[1:] > RISES * power.cummin(0).values[:-1] for power in powers)
    gain = sums(modes.sigma.square().mean(-1))[used] / counts[used]
    is_risen = rises & ~rises_in_data & (gain[1:] < WEAKENED * gain.max())
    total = counts[used] * powers[0]
    return synchronize.as_number(total[1:][is_risen].sum() / total.sum().clamp_min(1e-300))


def _inside(residual: Tensor, kernel_size: Size) -> Tensor:
    """Crop a kernel's width at each edge, but at most a quarter of a side."""
    for axis, margin in zip(space_axes(len(kernel_size)), _margins(residual, kernel_size), strict=True):
        residual = residual.narrow(axis, margin, residual.shape[axis] - 2 * margin)
    return residual


def _edge_ratio(residual: Tensor, kernel_size: Size, interior_rms: float, border: Sequence[BorderBand] | None) -> float:
    """Divide the largest rms at one distance from the edge, up to a kernel's width, by that of the interior."""
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
    """Compute the part of the residual's excess over the noise that no plausible image explains.

    Along a mode the residual is (1 − f)(σx + n). No plausible image x is several times as strong in a band of like σ as
    in the modes that the data decide. `by_mode` is the power of the noise along each mode relative to white noise of
    its size, shape `(*F, m)`; `level` is its standard deviation, if it is known.
    """
    modes, noise, left = bands.modes, ((level or 0.0) ** 2 * by_mode).flatten(), FadedImages.of(residual, data.n_axes)
    of_residual, of_data = (modes.power_of_outputs(images).flatten() for images in (left, data))
    reference = bands.strength(of_data)
    excess = implausible = 0.0
    n_perpendicular = modes.u.shape[-2] - modes.sigma.shape[-1]
    if n_perpendicular > 0:
        # No image explains what lies outside the range of the kernel.
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


def _share_of_noise(bands: ModeBands, by_mode: Tensor) -> float:
    """Compute the part of the power of the noise that stays in the residual."""
    left, modes = bands.mean(by_mode.flatten() * bands.lost), bands.modes
    # With more outputs than inputs, the residual contains all noise that no image explains.
    part = modes.sigma.shape[-1] / modes.u.shape[-2]
    return part * sum(left) / len(left) + 1 - part


def noise_by_mode(noise: NoiseModel, modes: TorusModes) -> Tensor:
    """Evaluate the power of noise along each mode, relative to white noise of its size, shape `(*F, m)`."""
    power = torch.ones_like(modes.sigma)
    if noise.is_white:
        return power
    return power * interpolated(noise.spectrum, modes.torus, power, modes.frequencies)[..., None]


def _contrast(data: FadedImages) -> float:
    images = data.images
    return _rms(images - images.mean(dim=space_axes(data.n_axes), keepdim=True))


def _usual_contrast(data: FadedImages) -> float:
    """Estimate the contrast of most samples from the median deviation, at most that of all samples."""
    parts = list(data.images.flatten(0, 1))
    middles = synchronize.medians(parts)
    deviations = synchronize.medians([(part - middle).abs() for part, middle in zip(parts, middles, strict=True)])
    return min(math.hypot(*deviations) / math.sqrt(len(parts)) / NORMAL_MEDIAN, _contrast(data))


def _rms(a: Tensor) -> float:
    return synchronize.as_number(torch.linalg.vector_norm(a, dtype=accumulation_dtype(a))) / a.numel() ** 0.5
