"""Data in the coordinates of the kernel's singular vectors, frequency by frequency: what all rules for λ work on.

With the singular value decomposition K(θ) = U S Vᴴ at every frequency of a torus and b = Uᴴŷ, the regularized estimate
passes each component of the data by f = g / (g + λ), where g = S² / (σ²max |l(θ)|²) is a number without a unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64, torus_symbol
from deconv_cli.operators.spectrum import single_threaded
from deconv_cli.regularizers import find_penalty
from deconv_cli.vocabulary import Size


@dataclass(frozen=True, eq=False)
class SpectralData:
    """Power of the data by frequency and component.

    The half spectrum of real data is kept: `multiplicity` counts how often each frequency stands in the full one.

    Attributes:
        gain: S², real, shape `(F, r)` with r = min(C_out, C_in).
        inputs: V, complex, shape `(F, C_in, r)`: the mixture of input channels behind each component; `None` where
            there is one input channel, which is always 1.
        ratio: g, shape `(F, r)`; infinite where the penalty sees nothing.
        penalty: |l|², shape `(F,)`.
        power: |b|², summed over the images of the batch, shape `(F, r)`, with a unitary FFT.
        outside: the power outside of the range of K, shape `(F,)`.
        multiplicity: 1 or 2, shape `(F,)`.
        n_images: images of the batch, so that `power / n_images` is that of one image.
        n_outputs: C_out.
        squared_sigma_max: σ²max.
        observed_share: the part of the torus that was observed, and so is noisy; the rest was continued.
    """

    gain: Tensor
    inputs: Tensor | None
    ratio: Tensor
    penalty: Tensor
    power: Tensor
    outside: Tensor
    multiplicity: Tensor
    n_images: int
    n_outputs: int
    squared_sigma_max: float
    observed_share: float = 1.0

    @property
    def n_data(self) -> float:
        """Real numbers in the data."""
        return synchronize.as_number(self.multiplicity.sum()) * self.n_outputs * self.n_images


@dataclass(frozen=True, eq=False)
class SpectralBasis:
    """The singular vectors and values of a kernel on a torus, ready for any data on it.

    Attributes:
        torus: `(N1, N2)`.
        vectors: U, complex, shape `(F, C_out, r)`; `None` for a single channel in and out, where only sizes matter.
        inputs: V, complex, shape `(F, C_in, r)`; `None` for a single input channel.
        gain: S², shape `(F, r)`.
        ratio: g, shape `(F, r)`.
        penalty: |l|², shape `(F,)`.
        multiplicity: 1 or 2, shape `(F,)`.
        n_outputs: C_out.
        squared_sigma_max: σ²max.
    """

    torus: Size
    vectors: Tensor | None
    inputs: Tensor | None
    gain: Tensor
    ratio: Tensor
    penalty: Tensor
    multiplicity: Tensor
    n_outputs: int
    squared_sigma_max: float

    @classmethod
    def of(cls, taps: Tensor, torus: Size, penalty: str, sigma_max: float) -> SpectralBasis:
        """Decompose a symbol.

        Args:
            taps: shape `(C_out, C_in, kH, kW)`.
            torus: `(N1, N2)`.
            penalty: which L.
            sigma_max: the largest singular value that λ is measured by.
        """
        symbol = torus_symbol(to_float64(taps.detach()), torus).flatten(0, 1)
        n_outputs = symbol.shape[-2]
        vectors: Tensor | None = None
        inputs: Tensor | None = None
        if symbol.shape[-2:] == (1, 1):
            gain = torch.view_as_real(symbol.resolve_conj()).square().sum(dim=(-3, -2, -1))[:, None]
        else:
            with single_threaded(symbol.device):
                vectors, values, transposed = torch.linalg.svd(symbol.contiguous(), full_matrices=False)
            gain, inputs = values.square(), transposed.mH
        squared = find_penalty(penalty).symbol(torus, gain.dtype, gain.device).flatten()
        half = torus[1] // 2 + 1
        multiplicity = torch.full((torus[0], half), 2.0, dtype=gain.dtype, device=gain.device)
        multiplicity[:, 0] = 1.0
        if torus[1] % 2 == 0:
            multiplicity[:, -1] = 1.0
        scale = sigma_max**2
        return cls(
            torus,
            vectors,
            inputs,
            gain,
            gain / (scale * squared[:, None]),
            squared,
            multiplicity.flatten(),
            n_outputs,
            scale,
        )

    def of_data(self, y: Tensor, observed_share: float = 1.0) -> SpectralData:
        """Transform data on the torus.

        Args:
            y: shape `(*batch, C_out, N1, N2)`.
            observed_share: the part of the torus that was observed.
        """
        spectrum = torch.fft.rfft2(to_float64(y), norm="ortho").flatten(-2).flatten(0, -3)
        total = torch.view_as_real(spectrum).square().sum(dim=(0, -1))
        if self.vectors is None:
            power, outside = total.sum(dim=0)[:, None], torch.zeros_like(total[0])
        else:
            components = torch.bmm(self.vectors.mH.contiguous(), spectrum.permute(2, 1, 0).contiguous())
            power = torch.view_as_real(components).square().sum(dim=(-2, -1))
            outside = (total.sum(dim=0) - power.sum(dim=-1)).clamp_min(0)
        return SpectralData(
            gain=self.gain,
            inputs=self.inputs,
            ratio=self.ratio,
            penalty=self.penalty,
            power=power,
            outside=outside,
            multiplicity=self.multiplicity,
            n_images=spectrum.shape[0],
            n_outputs=self.n_outputs,
            squared_sigma_max=self.squared_sigma_max,
            observed_share=observed_share,
        )
