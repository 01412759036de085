"""A torus on which a field may change its sign each time around: its frequencies lie between those of a plain one.

Along a twisted axis z(x + N) = −z(x), and the frequencies are (2k + 1)π/N: none of them is zero. So a kernel of zero
mean, which has no inverse on a plain torus, has one here. Along an axis that is not twisted all is as in `torch.fft`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.circulant import phases, torus_symbol
from deconv_cli.vocabulary import Size

Twists = tuple[bool, bool]
"""Whether a field changes its sign around the rows' axis, and around the columns'."""


@dataclass(frozen=True)
class TwistedTorus:
    """The discrete Fourier transform of real fields on a torus, and the symbol of a kernel there.

    Only one frequency of each conjugate pair is kept, like `torch.fft.rfft2` does: along the columns' axis
    `N2 // 2 + 1` of them, or `(N2 + 1) // 2` where it is twisted.

    Attributes:
        size: `(N1, N2)`.
        twists: which axes are twisted.
    """

    size: Size
    twists: Twists = (False, False)

    @property
    def plane(self) -> Size:
        """The shape of a spectrum."""
        n1, n2 = self.size
        return n1, (n2 + 1) // 2 if self.twists[1] else n2 // 2 + 1

    def transform(self, field: Tensor) -> Tensor:
        """Transform `(*, H, W)`, zero beyond its end, to a spectrum `(*, *plane)`."""
        n1, n2 = self.size
        if not any(self.twists):
            return torch.fft.rfft2(field, s=self.size)
        if self.twists[1]:
            turned = field * self._turn(field.shape[-1], n2, field).conj()
            spectrum = torch.fft.fft(turned, n=n2, dim=-1)[..., : self.plane[1]]
        else:
            spectrum = torch.fft.rfft(field, n=n2, dim=-1)
        if self.twists[0]:
            spectrum = spectrum * self._turn(field.shape[-2], n1, field).conj()[:, None]
        return torch.fft.fft(spectrum, n=n1, dim=-2)

    def restore(self, spectrum: Tensor) -> Tensor:
        """Transform a spectrum `(*, *plane)` back to a field `(*, N1, N2)`."""
        n1, n2 = self.size
        if not any(self.twists):
            return torch.fft.irfft2(spectrum, s=self.size)
        lines = torch.fft.ifft(spectrum, dim=-2)
        if self.twists[0]:
            lines = lines * self._turn(n1, n1, spectrum.real)[:, None]
        if not self.twists[1]:
            return torch.fft.irfft(lines, n=n2, dim=-1)
        # The other half holds the conjugates; for odd N2 the frequency π is its own.
        weights = torch.full((self.plane[1],), 2.0, dtype=spectrum.real.dtype, device=spectrum.device)
        if n2 % 2 == 1:
            weights[-1] = 1.0
        half = torch.fft.ifft(lines * weights, n=n2, dim=-1)
        return (half * self._turn(n2, n2, spectrum.real)).real

    def symbol(self, kernel: Tensor, origin: Size) -> Tensor:
        """Evaluate the symbol of a cross-correlation, as `torus_symbol` does on a plain torus.

        Args:
            kernel: real, shape `(C_out, C_in, kH, kW)`.
            origin: the tap that meets the output pixel.

        Returns:
            Complex, shape `(*plane, C_out, C_in)`.
        """
        if not any(self.twists):
            return torus_symbol(kernel, self.size, origin)
        down, across = (
            phases(2 * torch.arange(n, device=kernel.device) + twisted, 2 * length, n_taps, kernel, at)
            for n, twisted, length, n_taps, at in zip(
                self.plane, self.twists, self.size, kernel.shape[-2:], origin, strict=True
            )
        )
        return (down @ kernel.to(down.dtype) @ across.T).permute(2, 3, 0, 1).contiguous()

    def kernel(self, blocks: Tensor) -> Tensor:
        """Turn blocks `(*plane, a, b)` into the real kernel `(a, b, N1, N2)` that they are the symbol of."""
        return self.restore(blocks.permute(2, 3, 0, 1))

    @staticmethod
    def _turn(n: int, length: int, like: Tensor) -> Tensor:
        angle = torch.arange(n, dtype=like.dtype, device=like.device) * (math.pi / length)
        return torch.polar(torch.ones_like(angle), angle)
