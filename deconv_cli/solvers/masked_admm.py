"""Total variation where outputs are missing around the frame: on a torus, where each step is in closed form.

Almeida and Figueiredo, Deconvolving images with unknown boundaries using the alternating direction method of
multipliers, IEEE Transactions on Image Processing 22, 2013; Matakos, Ramani and Fessler, Accelerated edge-preserving
image restoration without boundary artifacts, ibid. Beside z = ∇x the outputs u = Kx of the whole torus are split off:
the data know those in the frame alone, and no weight lies on differences that reach over the edge of the image. What is
left for x is diagonal in frequency. Of stacks a step takes a fifth of the time that one with the exact inverse takes,
and one to two times as many are needed; of pictures up to fourteen times as many, so that it does not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from deconv_cli.operators.axes import crop
from deconv_cli.operators.circulant import BlockCirculant, next_fast_size, to_float64, torus_symbol
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.admm import RELAXATION, Admm
from deconv_cli.solvers.fourier import gram_inverse_blocks
from deconv_cli.solvers.inverse import Inverse

# How strongly u is held to Kx, where the data hold it with 1. Of a stack of brightness 1 it took a fifth more steps by
# 0.1 with noise of 0.02, and half as many again by 0.3 with noise of 0.003.
ETA = 0.2


class MaskedAdmm(Admm):
    """The variables of the iteration, with u and its multiplier q, for the boundary `unknown` and padding `valid`.

    Args:
        build: builds (AᴴA + ρ∇ᴴ∇)⁻¹ for a ρ; the iteration starts from such an estimate.
        y: data, shape `(*batch, C_out, *output_size)`.
        sigma_max: the largest singular value of the kernel's symbol.
        rho: the ρ of all steps; `None` adapts it to the image.
    """

    def __init__(
        self, build: Callable[[float], Inverse], y: Tensor, sigma_max: float, rho: float | None = None
    ) -> None:
        super().__init__(build, y, sigma_max, rho)
        operator, penalty = self._problem.operator, find_penalty(self._problem.penalty)
        kernel = to_float64(operator.kernel)
        self._torus = tuple(next_fast_size(n) for n in operator.geometry.extended_size)
        self._symbol = torus_symbol(kernel, self._torus)
        self._energies = penalty.symbol(self._torus, kernel.dtype, kernel.device)
        self._circulant = self._convolution(self._symbol)
        self._around = penalty.operator((operator.input_shape[0], *self._torus), periodic=True)
        self._wide = close_smoothly(self.x, self._torus)
        self._blurred = self._circulant.forward(self._wide)
        self._u, self._q = self._blurred, -self._residual
        self._fields = self._around.forward(self._wide)

    def _improve(self) -> None:
        """Minimize over x, then over u, and over those differences that have no weight."""
        for inside, z in zip(self._inside(self._fields), self._inside(self._z), strict=True):
            inside.copy_(z)
        missing = (self._u - self._blurred).mul_(ETA)
        self._frame(missing).sub_(self._q)
        pull = (self._fields - self._around.forward(self._wide)).mul_(self.rho)
        self._image(pull).sub_(self._p)
        left = self._circulant.adjoint(missing).add_(self._around.adjoint(pull))
        del missing, pull  # fields are the largest of all that is stored
        self._wide = self._wide + self._on_torus.forward(left).div_(ETA)
        self._blurred = self._circulant.forward(self._wide)
        self._u = RELAXATION * self._blurred + (1 - RELAXATION) * self._u
        at_data = self._frame(self._u)
        at_data.add_(self._q, alpha=1 / ETA)
        self._q = (at_data - self.y).mul_(ETA / (1 + ETA))
        at_data.sub_(self._q, alpha=1 / ETA)
        self._fields.mul_(1 - RELAXATION).add_(self._around.forward(self._wide), alpha=RELAXATION)
        self._set_estimate(self._image(self._wide), self.y - self._frame(self._blurred))

    def _set_rho(self, rho: float) -> None:
        self.rho = rho
        self._on_torus = self._convolution(gram_inverse_blocks(self._symbol, rho / ETA, self._energies))

    def _convolution(self, symbol: Tensor) -> BlockCirculant:
        """Convolve on the torus, in the precision of the data."""
        return BlockCirculant(symbol.to(self.y.dtype.to_complex()), self._torus)

    def _inside(self, fields: Tensor) -> Iterator[Tensor]:
        """View the differences between pixels of the image, term by term, in fields `(*batch, n, C, *size)`."""
        size, n_axes = self._problem.operator.geometry.extended_size, len(self._torus)
        for number, term in enumerate(find_penalty(self._problem.penalty).terms(n_axes)):
            yield crop(fields.select(-n_axes - 2, number), (0,) * n_axes, term.observed(size))

    def _frame(self, field: Tensor) -> Tensor:
        """View what the data know of outputs on the torus."""
        size = self._problem.operator.geometry.output_size
        return crop(field, (0,) * len(size), size)

    def _image(self, field: Tensor) -> Tensor:
        """View the image on the torus."""
        size = self._problem.operator.geometry.extended_size
        return crop(field, (0,) * len(size), size)
