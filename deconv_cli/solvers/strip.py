"""The exact answer where the border is unknown, at any size: an iteration on the unobserved strip alone.

Write the problem as least squares on a torus, min ‖K_a z − y_a‖² over the observed entries of y_a, with K_a = [K; √μ
L] and zeros as the data of the penalty. Let q be the values of the entries that were not observed: outputs beyond the
frame, and differences across the torus's seam. Were q known, all would be diagonal in frequency: z = B·K_aᴴ(y_a + q)
with B = (KᴴK + μ|l|²)⁻¹. The right q agrees with the z that it leads to:

    (I − M K_a B K_aᴴ Mᵀ) q = M K_a B K_aᴴ y_a,        M = restriction to the unobserved entries,

symmetric positive definite and as large as the border. Conjugate gradients solve it, preconditioned by the two closed
bands that the unobserved entries form (`bands.py`); the number of iterations does not grow with the image. The same
system with another right-hand side solves the normal equations for any gradient, which refines the answer to the last
digit.

The embedding with boundary unknowns is Reeves's (Fast image restoration without boundary artifacts, IEEE Transactions
on Image Processing 14, 2005); the bands were derived for this project.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators.circulant import FrequencyBlocks, real_kernel, torus_symbol, widened
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.regularizers import is_determined, penalty_symbol
from deconv_cli.solvers.bands import BandPreconditioner, StripLayout
from deconv_cli.solvers.fourier import gram_inverse_blocks
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import TikhonovProblem, accumulation_dtype
from deconv_cli.solvers.refinement import Course, Progress, StoppingRule, refine, refine_equations, step
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import Boundary, Penalty

# Below this λ the strip's system is too ill-conditioned for float32; the answer is float32's all the same.
MIN_LAMBDA_IN_FLOAT32 = 1e-4


def covers(boundary: Boundary, lam: float, penalty: Penalty, n_outputs: int, n_inputs: int) -> bool:
    """Tell whether this solver covers a problem.

    The border must be unknown and λ positive. A gradient penalty needs at least as many outputs as inputs: with
    fewer, there are constant images that neither the kernel nor the penalty sees.
    """
    is_covered = boundary is Boundary.UNKNOWN and lam > 0 and penalty in (Penalty.IDENTITY, Penalty.GRADIENT)
    return is_covered and is_determined(lam, penalty, n_outputs, n_inputs)


class StripInverse(Inverse):
    """Inverse of one problem with an unknown border, ready for many outputs.

    Args:
        problem: one that `covers` accepts.
        rule: when to stop.
    """

    def __init__(self, problem: TikhonovProblem, rule: StoppingRule) -> None:
        self.problem = problem
        self.rule = rule
        self._system = _StripSystem(problem)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, H_y, W_y)`."""
        return refine(self.problem, y, self._system.first_estimate(y), self.rule, self._improve, progress)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, N1, N2)`."""
        equations = NormalEquations.of_gradient(self.problem, g)
        return refine_equations(equations, equations.zero(), self.rule, self._improve).warn_for_status().value

    def _improve(self, x: Tensor, gradient: Tensor, course: Course) -> Tensor:
        return x + self._system.solve(gradient, course)


class _StripSystem:
    """The system on the strip, and what leads from there to the image."""

    def __init__(self, problem: TikhonovProblem) -> None:
        operator = problem.operator
        taps = operator.kernel
        torus = operator.geometry.extended_size
        self._torus = torus
        has_seams = problem.penalty is Penalty.GRADIENT
        self._layout = StripLayout(
            torus, operator.geometry.output_size, taps.shape[0], taps.shape[1] if has_seams else 0
        )
        wide = widened(taps)
        symbol = torus_symbol(wide, torus)
        penalty = penalty_symbol(problem.penalty, torus, wide.dtype, taps.device)
        gram_inverse = gram_inverse_blocks(symbol, problem.weight, penalty)
        root = problem.weight**0.5
        # √μ(1 − e^{iθ}) takes the value of a difference across the seam into the gradient, for rows and columns.
        across = tuple(
            root * (1 - torch.polar(torch.ones_like(angle), angle))
            for angle in (
                torch.arange(torus[0], dtype=wide.dtype, device=taps.device) * (2 * torch.pi / torus[0]),
                torch.arange(torus[1] // 2 + 1, dtype=wide.dtype, device=taps.device) * (2 * torch.pi / torus[1]),
            )
        )
        self._dtype = taps.dtype if problem.lam >= MIN_LAMBDA_IN_FLOAT32 else wide.dtype
        self._precondition = _build_preconditioner(
            self._layout, symbol, gram_inverse, across if has_seams else (), self._dtype
        )
        narrow = self._dtype.to_complex()
        self._symbol = FrequencyBlocks(symbol.to(narrow))
        self._gram_inverse = FrequencyBlocks(gram_inverse.to(narrow))
        self._across = tuple(factor.to(narrow) for factor in across) if has_seams else ()
        self._sigma = problem.sigma_max + 2 * root * has_seams

    def first_estimate(self, y: Tensor) -> Tensor:
        """Restore data as if they ran on smoothly around the torus; shape `(*batch, C_in, N1, N2)`."""
        closed = close_smoothly(close_smoothly(y, -2, self._torus[0]), -1, self._torus[1])
        spectrum = self._symbol.multiply(torch.fft.rfft2(closed.to(self._dtype)), adjoint=True)
        return torch.fft.irfft2(self._gram_inverse.multiply(spectrum), s=self._torus).to(y.dtype)

    def solve(self, gradient: Tensor, course: Course) -> Tensor:
        """Solve (AᴴA + μLᴴL) x = gradient, until what remains of the gradient is below the course's goal.

        The remaining gradient is K_aᴴMᵀ times the residual on the strip, whose norm therefore bounds it.
        """
        spectrum = self._gram_inverse.multiply(torch.fft.rfft2(gradient.to(self._dtype)))
        residual = self._outputs(spectrum)
        unknowns = torch.zeros_like(residual)
        z = self._precondition(residual)
        direction, gamma = z, _dot(residual, z)
        remaining = self._sigma * _dot(residual, residual).sqrt()
        while not course.is_spent and not bool((remaining <= course.goal).all()):
            image = direction - self._outputs(self._estimate(direction))
            alpha = step(gamma, _dot(direction, image)).to(self._dtype)[..., None]
            unknowns = unknowns + alpha * direction
            residual = residual - alpha * image
            z = self._precondition(residual)
            previous, gamma = gamma, _dot(residual, z)
            direction = z + step(gamma, previous).to(self._dtype)[..., None] * direction
            remaining = self._sigma * _dot(residual, residual).sqrt()
            course.note(remaining)
        return torch.fft.irfft2(spectrum + self._estimate(unknowns), s=self._torus).to(gradient.dtype)

    def _estimate(self, unknowns: Tensor) -> Tensor:
        """Spectrum of B·K_aᴴMᵀq, shape `(*batch, C_in, N1, N2 // 2 + 1)`."""
        field = torch.fft.rfft2(self._layout.embed(unknowns))
        total = self._symbol.multiply(field, adjoint=True)
        if self._across:
            _, _, rows, columns = self._layout.split(unknowns)
            # Both seams at once: outer products of what varies along the seam and what varies across it.
            across_rows, across_columns = self._across
            down = torch.stack(torch.broadcast_tensors(across_rows, torch.fft.fft(columns, dim=-1)), dim=-1)
            right = torch.stack(torch.broadcast_tensors(torch.fft.rfft(rows, dim=-1), across_columns), dim=-2)
            total = total + down @ right
        return self._gram_inverse.multiply(total)

    def _outputs(self, spectrum: Tensor) -> Tensor:
        """Compute M·K_a z for the spectrum of a z."""
        field = torch.fft.irfft2(self._symbol.multiply(spectrum), s=self._torus)
        if not self._across:
            empty = field.new_zeros(*field.shape[:-3], 0, 0)
            return self._layout.gather(field, empty, empty)
        across_rows, across_columns = (factor.conj() for factor in self._across)
        rows = torch.fft.irfft((across_rows @ spectrum) / self._torus[0], n=self._torus[1], dim=-1)
        columns = torch.fft.ifft(_sum_columns(spectrum, across_columns, self._torus[1]), dim=-1).real
        return self._layout.gather(field, rows, columns)


def _build_preconditioner(
    layout: StripLayout, symbol: Tensor, gram_inverse: Tensor, across: tuple[Tensor, ...], dtype: torch.dtype
) -> BandPreconditioner:
    """Gather the bands' systems from the real kernels of I − K_a B K_aᴴ."""
    torus = layout.torus
    filtered = symbol @ gram_inverse  # K B
    outputs = real_kernel(filtered @ symbol.mH, torus).neg_()
    outputs[..., 0, 0] += torch.eye(layout.n_outputs, dtype=outputs.dtype, device=outputs.device)
    seams = []
    for axis, factor in enumerate(across):
        plane = factor[:, None, None, None] if axis == 0 else factor[:, None, None]
        to_seam = real_kernel(filtered * plane, torus).neg_()
        within = real_kernel(gram_inverse * plane.abs().square(), torus).neg_()
        within[..., 0, 0] += torch.eye(layout.n_seams, dtype=within.dtype, device=within.device)
        seams.append((to_seam, within))
    return BandPreconditioner(layout, outputs, tuple(seams), dtype)


def _sum_columns(spectrum: Tensor, factor: Tensor, n_columns: int) -> Tensor:
    """Average a half spectrum times a factor, `(*, N1, N2 // 2 + 1)`, over all `N2` columns of the full spectrum.

    The columns that are not stored follow from the symmetry X(−θ1, −θ2) = conj X(θ1, θ2) of real fields.
    """
    n_inner = (n_columns + 1) // 2
    inner = spectrum[..., 1:n_inner] @ factor[1:n_inner]
    total = spectrum[..., 0] * factor[0] + inner + inner.flip(-1).roll(1, -1).conj()
    if n_columns % 2 == 0:
        total = total + spectrum[..., -1] * factor[-1]
    return total / n_columns


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, dtype=accumulation_dtype(a))
