"""The power of data by frequency and by gain: the input of all rules for λ.

With the singular value decomposition K(θ) = U S Vᴴ at every frequency of a torus and b = Uᴴŷ, the regularized estimate
passes each component of the data by f = g / (g + λ), where the gain g = S² / (σ²max |l(θ)|²) has no unit.

Where the noise is not white, powers and gains are divided by the noise's share at each frequency, so that the noise
becomes white. The estimate, and so f, does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.hann_window import squared_modulus
from deconv_cli.diagnostics.noise_spectrum import interpolated
from deconv_cli.diagnostics.torus_modes import TorusModes
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype
from deconv_cli.regularizers import PenaltyLike

_GROUPS_PER_DECADE = 200
"""Gains of a group differ by at most 1.2 %, so the part that an estimate passes is right to 2e-6."""
_DECADES = (-14, 10)
"""Range of the groups, far beyond the λ that are tried."""
_N_GROUPS = (_DECADES[1] - _DECADES[0]) * _GROUPS_PER_DECADE


@dataclass(frozen=True, eq=False)
class PowerByGain:
    """The power of the data at each gain g, and how many values of the data have it.

    A singular value decomposition gives both at the same gains; estimates have gains of their own.

    Attributes:
        ratio: g, shape `(n,)`; infinite where the penalty is zero.
        power: sum of the squares of the data at each, shape `(n,)`.
        outside: sum of the squares outside of the operator's range, a single number.
        count_ratio: g again, shape `(m,)`.
        count: how many values of the data have it, shape `(m,)`.
        n_data: number of real values in the data.
        observed_share: the part of them that was observed, and so is noisy.
    """

    ratio: Tensor
    power: Tensor
    outside: Tensor
    count_ratio: Tensor
    count: Tensor
    n_data: float
    observed_share: float = 1.0


def group_by_gain(gain: Tensor, *amounts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Sum amounts of about the same gain, so that a rule takes as long for any picture.

    Zero and infinity are groups of their own. Gives for each of the amounts `(n,)` the gains of the groups, by the mean
    logarithm, and their sums; the input itself if it has no more gains than groups.
    """
    if len(gain) <= _N_GROUPS:
        return [(gain, amount) for amount in amounts]
    level, wide = gain.log10(), accumulation_dtype(gain)
    group = ((level - _DECADES[0]) * _GROUPS_PER_DECADE).clamp(0, _N_GROUPS - 1).long() + 1
    group = torch.where(gain == 0, 0, torch.where(gain.isinf(), _N_GROUPS + 1, group))
    level = torch.where(level.isinf(), 0, level)
    found = []
    for amount in amounts:
        sums = amount.new_zeros(_N_GROUPS + 2, dtype=wide).index_add_(0, group, amount.to(wide))
        levels = torch.zeros_like(sums).index_add_(0, group, (amount * level).to(wide))
        gains = 10 ** (levels / sums.clamp_min(torch.finfo(wide).tiny))
        gains[0], gains[-1] = 0, torch.inf
        found.append((gains, sums))
    return found


@dataclass(frozen=True, eq=False)
class SpectralData:
    """Power of the data by frequency and component, at the F frequencies of the half spectrum of a torus.

    Attributes:
        modes: singular vectors and values at all frequencies, with m = min(C_out, C_in) components each.
        ratio: g, shape `(F, m)`; infinite where the penalty is zero.
        power: |b|², summed over the images of the batch and divided by `noise`, shape `(F, m)`, with a unitary FFT.
        outside: the power outside of the range of K, divided likewise, shape `(F,)`.
        n_images: images of the batch.
        observed_share: the part of the torus that was observed, and so is noisy; the rest was continued.
        noise: power of the noise relative to white noise of its size, shape `(F,)`; `None` for white noise.
        detailed_share: the part of the torus that has as much detail as the frame; the continued part has less.
    """

    modes: TorusModes
    ratio: Tensor
    power: Tensor
    outside: Tensor
    n_images: int
    observed_share: float
    noise: Tensor | None = None
    detailed_share: float = 1.0

    @classmethod
    def of(
        cls,
        modes: TorusModes,
        y: Tensor,
        *,
        penalty: PenaltyLike,
        sigma_max: float,
        observed_share: float = 1.0,
        noise: NoiseModel | None = None,
        detailed_share: float = 1.0,
    ) -> SpectralData:
        """Transform data `(*batch, C_out, N1, N2, ...)` on a torus, by modes at all of its frequencies.

        λ is measured by `sigma_max`, and the noise is white by default; see the attributes for the rest.
        """
        images = y.reshape(-1, *y.shape[-len(modes.torus) - 1 :])
        spectrum = modes.transformed(images)
        power = squared_modulus(modes.of_outputs(spectrum)).sum(dim=0).flatten(0, -2)
        outside = torch.zeros_like(power[:, 0])
        if modes.u.shape[-2] > power.shape[-1]:
            outside = (modes.energy(spectrum).sum(dim=0).flatten() - power.sum(dim=-1)).clamp_min(0)
        gain = modes.sigma.square()
        # Where kernel and penalty both vanish, as for constants under differences, nothing is estimated.
        ratio = torch.where(gain == 0, 0, gain / (sigma_max**2 * modes.squared_penalty(penalty))).flatten(0, -2)
        if noise is None or noise.is_white:
            return cls(modes, ratio, power, outside, len(images), observed_share, detailed_share=detailed_share)
        share = interpolated(noise.spectrum, modes.torus, power).flatten()
        power, outside = power / share[:, None], outside / share
        return cls(modes, ratio, power, outside, len(images), observed_share, share, detailed_share)

    @property
    def gain(self) -> Tensor:
        """S², divided likewise, shape `(F, m)`."""
        gain = self.modes.sigma.square().flatten(0, -2)
        return gain if self.noise is None else gain / self.noise[:, None]

    @property
    def multiplicity(self) -> Tensor:
        """How often each frequency occurs in the full spectrum, 1 or 2, shape `(F,)`."""
        return self.modes.weights.flatten()

    @cached_property
    def by_gain(self) -> PowerByGain:
        """The same without the frequencies, in groups."""
        multiplicity = self.multiplicity[:, None].expand_as(self.power)
        ratio = self.ratio.expand_as(self.power).flatten()
        amounts = (multiplicity * self.power).flatten(), self.n_images * multiplicity.flatten()
        (ratio, power), (count_ratio, count) = group_by_gain(ratio, *amounts)
        return PowerByGain(
            ratio=ratio,
            power=power,
            outside=(self.multiplicity * self.outside).sum(),
            count_ratio=count_ratio,
            count=count,
            n_data=synchronize.as_number(self.multiplicity.sum()) * self.modes.u.shape[-2] * self.n_images,
            observed_share=self.observed_share,
        )

    @cached_property
    def squares_by_gain(self) -> tuple[Tensor, Tensor] | None:
        """Gains of groups, and sums of |b|⁴ over them; `None` if a frequency has more than one component or output."""
        if self.power.shape[-1] > 1 or self.modes.u.shape[-2] > 1:
            return None
        (found,) = group_by_gain(self.ratio[:, 0], self.multiplicity * self.power[:, 0].square())
        return found
