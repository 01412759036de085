"""Data in the coordinates of the kernel's singular vectors, frequency by frequency: what all rules for λ work on.

With the singular value decomposition K(θ) = U S Vᴴ at every frequency of a torus and b = Uᴴŷ, the regularized estimate
passes each component of the data by f = g / (g + λ), where g = S² / (σ²max |l(θ)|²) is a number without a unit.

Where the noise is not white, each frequency is measured by the noise's share there: powers and gains are divided by it,
and the noise of what is left is white. The estimate, and so f, is the same as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.diagnostics.noise_spectrum import interpolated
from deconv_cli.diagnostics.power_by_gain import PowerByGain, group_by_gain
from deconv_cli.diagnostics.torus_modes import TorusModes
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.regularizers import PenaltyLike


@dataclass(frozen=True, eq=False)
class SpectralData:
    """Power of the data by frequency and component, at the F frequencies of the half spectrum of a torus.

    Attributes:
        modes: singular vectors and values at all frequencies, with m = min(C_out, C_in) components each.
        ratio: g, shape `(F, m)`; infinite where the penalty is zero.
        power: |b|², summed over the images of the batch and divided by `noise`, shape `(F, m)`, with a unitary FFT.
        outside: the power outside of the range of K, divided likewise, shape `(F,)`.
        n_images: images of the batch, so that `power / n_images` is that of one image.
        observed_share: the part of the torus that was observed, and so is noisy; the rest was continued.
        detailed_share: the part of the torus that has as much detail as the frame: what was continued has less.
        noise: power of the noise relative to white noise of its size, shape `(F,)`; `None` for white noise.
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
        """Transform data on a torus.

        Args:
            modes: at all frequencies of the torus.
            y: shape `(*batch, C_out, N1, N2, ...)`.
            penalty: which L.
            sigma_max: the largest singular value that λ is measured by.
            observed_share: the part of the torus that was observed.
            noise: what kind of noise the data have; by default it is white.
            detailed_share: the part of the torus that has as much detail as the frame.
        """
        images = y.reshape(-1, *y.shape[-len(modes.torus) - 1 :])
        spectrum = modes.transformed(images)
        power = squared_modulus(modes.of_outputs(spectrum)).sum(dim=0).flatten(0, -2)
        outside = torch.zeros_like(power[:, 0])
        if modes.u.shape[-2] > power.shape[-1]:
            outside = (modes.energy(spectrum).sum(dim=0).flatten() - power.sum(dim=-1)).clamp_min(0)
        gain = modes.sigma.square()
        # What neither the kernel passes nor the penalty holds back, as constants under differences, is not estimated.
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
        """How often each frequency stands in the full spectrum, 1 or 2, shape `(F,)`."""
        return self.modes.weights.flatten()

    @property
    def n_data(self) -> float:
        """Real numbers in the data."""
        return synchronize.as_number(self.multiplicity.sum()) * self.modes.u.shape[-2] * self.n_images

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
            n_data=self.n_data,
            observed_share=self.observed_share,
        )

    @cached_property
    def squares_by_gain(self) -> tuple[Tensor, Tensor] | None:
        """Gains of groups, and sums of |b|⁴ over them; `None` where a frequency has several components, or more."""
        if self.power.shape[-1] > 1 or self.modes.u.shape[-2] > 1:
            return None
        (found,) = group_by_gain(self.ratio[:, 0], self.multiplicity * self.power[:, 0].square())
        return found
