"""Data of a picture continued onto a torus by the model itself, so that rules of the torus hold for them."""

from __future__ import annotations

import math

from torch import Tensor

from deconv_cli.diagnostics.spectral_data import SpectralBasis, SpectralData
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.circulant import BlockCirculant, next_fast_size, torus_symbol
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse

_MAX_SIDE = 768
_MAX_SIDE_OF_BLOCKS = 384
_MAX_BLOCK_OPERATIONS = 3e8
_TOLERANCE = 1e-4
"""Certificate of the estimates that continue the data: λ needs no more digits."""
_MIN_GAP = 16


class Continuation:
    """Data on a torus: observed in the frame, and beyond it what the model says of an estimate.

    A piece of at most 768 × 768 samples from their middle is taken (less where channels mix), as a part of a larger
    scene of which nothing is known outside; periodic data that are no larger are taken as they are.

    Args:
        y: shape `(C, H_y, W_y)` or `(B, C, H_y, W_y)`, without the bias, of the kernel's precision.
        kernel: what made it.
        boundary: only whether it is circular matters.
        penalty: which L.
        max_memory: bytes that an estimate may take.

    Attributes:
        window: height and width of the piece.
        basis: singular vectors and values on the torus.
        is_periodic: the data are periodic, and need no continuation.

    Raises:
        ShapeError: `y` does not fit the kernel.
    """

    def __init__(
        self, y: Tensor, kernel: Kernel, *, boundary: str, penalty: str, max_memory: int | None = None
    ) -> None:
        self.kernel, self.penalty, self.max_memory = kernel, penalty, max_memory
        outputs = kernel.split(y, are_outputs=True)
        size = (y.shape[-2], y.shape[-1])
        self.sigma_max = kernel_spectrum(kernel.taps, size).sigma_max
        side = _affordable_side(kernel)
        self.is_periodic = as_rule(boundary).is_periodic and max(size) <= side
        self.piece = _middle(outputs.reshape(-1, *outputs.shape[-3:]), side)
        self.window = (self.piece.shape[-2], self.piece.shape[-1])
        self.torus = self.window if self.is_periodic else self._roomy_torus()
        self.basis = SpectralBasis.of(kernel.taps, self.torus, penalty, self.sigma_max)
        self._blur = BlockCirculant(torus_symbol(kernel.taps.detach(), self.torus), self.torus)

    def _roomy_torus(self) -> tuple[int, int]:
        sizes = [
            next_fast_size(n + (k - 1) + max(_MIN_GAP, 2 * (k - 1)))
            for n, k in zip(self.window, self.kernel.size, strict=True)
        ]
        return sizes[0], sizes[1]

    def started(self) -> SpectralData:
        """Close the data themselves, before anything is known of the image."""
        return self.basis.of_data(self._closed(self.piece))

    def continued(self, lam: float) -> SpectralData:
        """Solve with λ = `lam`, and continue the data by what the estimate predicts."""
        if self.is_periodic:
            return self.started()
        estimate = self._inverse(lam).solve(self.kernel.join(self.piece)).value
        predicted = self._blur.forward(self._closed(estimate.reshape(-1, *estimate.shape[-3:])))
        predicted[..., : self.window[0], : self.window[1]] = self.piece
        return self.basis.of_data(predicted, math.prod(self.window) / math.prod(self.torus))

    def _inverse(self, lam: float) -> PseudoInverse:
        geometry = Geometry.of_output(self.window, self.kernel.size, "valid")
        # λ is measured by the largest singular value on the torus of the whole image, not on that of the piece.
        scale = (self.sigma_max / kernel_spectrum(self.kernel.taps, geometry.image_size).sigma_max) ** 2
        settings = ResolvedSettings(
            padding="valid",
            boundary="unknown",
            lam=lam * scale,
            penalty=self.penalty,
            tolerance=_TOLERANCE,
            max_memory=self.max_memory,
        )
        return PseudoInverse(self.kernel, geometry.image_size, settings)

    def _closed(self, images: Tensor) -> Tensor:
        return close_smoothly(images, self.torus)


def _affordable_side(kernel: Kernel) -> int:
    n_outputs, n_inputs = kernel.taps.shape[:2]
    if min(n_outputs, n_inputs) == 1:
        return _MAX_SIDE
    per_frequency = n_outputs * n_inputs * min(n_outputs, n_inputs)
    return max(32, min(_MAX_SIDE_OF_BLOCKS, int((2 * _MAX_BLOCK_OPERATIONS / per_frequency) ** 0.5)))


def _middle(outputs: Tensor, side: int) -> Tensor:
    height, width = outputs.shape[-2:]
    rows, columns = min(height, side), min(width, side)
    top, left = (height - rows) // 2, (width - columns) // 2
    return outputs[..., top : top + rows, left : left + columns]
