"""Power by gain of any linear operator, by the bidiagonalization of Golub and Kahan started at data and at probes.

After k steps from b the operator is a bidiagonal matrix B of k columns, and the squares of its singular values with the
first components of its left singular vectors are a Gauss quadrature: they give bᵀf(AAᵀ)b, for every f at once, as if
each singular value of A had been met, the outermost soonest (Golub and Meurant, Matrices, Moments and Quadrature with
Applications, 2010, chapters 6 and 7). Started at the data that is their power; started at random signs, in the mean,
how many singular values there are (Hutchinson, A stochastic estimator of the trace of the influence matrix,
Communications in Statistics 18, 1989). Nothing is orthogonalized again: a singular value that rounding finds twice has
its weight once, in two parts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.diagnostics.power_by_gain import PowerByGain
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import as_factor, norm, safe_ratio
from deconv_cli.operators.linear_operator import LinearOperator

# Random signs hold so many numbers together, where one image has fewer.
N_PROBED = 2**15
MAX_PROBES = 16
# Of a batch so many numbers are looked at, or one image if that has more.
MAX_NUMBERS = 2**22


class GolubKahan:
    """A bidiagonalization for each vector of a batch, which is continued as far as is wanted.

    Args:
        operator: A.
        start: shape `(B, *output_shape)`.
    """

    def __init__(self, operator: LinearOperator, start: Tensor) -> None:
        self._operator = operator
        self._n_outputs, self._n_inputs = len(operator.output_shape), len(operator.input_shape)
        self._size, self._u = self._unit(start, self._n_outputs)
        size, self._v = self._unit(operator.adjoint(self._u), self._n_inputs)
        self._diagonal, self._below = [size], list[Tensor]()

    def extend(self, n_steps: int) -> None:
        """Take so many steps more."""
        for _ in range(n_steps):
            ahead = self._operator.forward(self._v) - as_factor(self._diagonal[-1], self._u, self._n_outputs) * self._u
            size, self._u = self._unit(ahead, self._n_outputs)
            self._below.append(size)
            back = self._operator.adjoint(self._u) - as_factor(size, self._v, self._n_inputs) * self._v
            size, self._v = self._unit(back, self._n_inputs)
            self._diagonal.append(size)

    def quadrature(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give squares of singular values with their weights, shape `(B, k)` each, and the weight of zero, `(B,)`."""
        below = torch.stack(self._below, dim=-1).double()
        diagonal = torch.stack(self._diagonal[:-1], dim=-1).double()
        matrices = torch.zeros(*below.shape, below.shape[-1] + 1, dtype=below.dtype, device=below.device).mT
        matrices = torch.diagonal_scatter(matrices, diagonal, dim1=-2, dim2=-1)
        matrices = torch.diagonal_scatter(matrices, below, offset=-1, dim1=-2, dim2=-1)
        u, values, _ = torch.linalg.svd(matrices, full_matrices=False)
        squares = self._size.double().square()
        weights = squares[:, None] * u[:, 0].square()
        return values.square(), weights, (squares - weights.sum(-1)).clamp_min(0)

    @staticmethod
    def _unit(vectors: Tensor, n_dims: int) -> tuple[Tensor, Tensor]:
        """Divide vectors by their norms, which are given too; zero stays zero."""
        sizes = norm(vectors, n_dims)
        return sizes, vectors * as_factor(safe_ratio(torch.ones_like(sizes), sizes), vectors, n_dims)


class ProbedPower:
    """Power by gain of data under an operator, the more exact the more steps are taken.

    Args:
        operator: A, the prior's square root included where the penalty is not the identity.
        y: shape `(*batch, *output_shape)`.
        sigma_max: the largest singular value that gains are measured by.
        seed: of the random signs.
    """

    def __init__(self, operator: LinearOperator, y: Tensor, sigma_max: float, *, seed: int = 0) -> None:
        n_numbers = math.prod(operator.output_shape)
        images = y.reshape(-1, *operator.output_shape)[: max(1, MAX_NUMBERS // n_numbers)]
        n_probes = min(MAX_PROBES, -(-N_PROBED // n_numbers))
        probes = synchronize.normal_numbers(y, (n_probes, *operator.output_shape), seed).sign()
        self._sigma_max, self._n_images, self._n_data = sigma_max, len(images), len(images) * n_numbers
        self._process = GolubKahan(operator, torch.cat([images, probes]))

    def extend(self, n_steps: int) -> None:
        """Take so many steps more."""
        self._process.extend(n_steps)

    def by_gain(self) -> PowerByGain:
        """Give power and numbers at the gains that were met."""
        values, weights, rest = self._process.quadrature()
        ratio, n = values / self._sigma_max**2, self._n_images
        share = n / (len(weights) - n)
        return PowerByGain(
            ratio=ratio[:n].flatten(),
            power=weights[:n].flatten(),
            outside=rest[:n].sum(),
            count_ratio=ratio[n:].flatten(),
            count=share * weights[n:].flatten(),
            n_data=float(self._n_data),
        )
