"""The pseudo-inverse of a convolution, built once for a kernel, a size and a boundary; with its derivatives.

The derivatives of x = H⁺Aᴴy in the data and in the kernel take one more solve, and never go through an iteration. With
the gradient g of some loss in x, w = H⁺g and H = AᴴA + μLᴴL, the gradient in y is Aw. The derivative in the kernel
follows from that of a pseudo-inverse of constant rank (Golub and Pereyra, The differentiation of pseudo-inverses and
nonlinear least squares problems whose variables separate, SIAM Journal on Numerical Analysis 10, 1973, eq. 4.12),
applied to A stacked on √μL. It is the gradient at the given kernel of

    φ(K) = ⟨A_K w, y − Ax⟩ − ⟨Aw, A_K x⟩ − μ(K)⟨Lw, Lx⟩ + ⟨A_K g₀, AH⁺x⟩,

a scalar that depends on K through the operators A_K and μ(K) = λσ²max(K) alone. g₀ is the part of g in the null space
of H; for λ > 0 it holds only constants that kernel and penalty both annihilate. σmax is differentiated at one frequency
where it is attained. If several frequencies attain it, or the rank changes, there is no derivative; the result is then
that of one of the frequencies, or of the given rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.convolution import full_precision_convolutions
from deconv_cli.operators.spectrum import Spectrum, peak_gain
from deconv_cli.parts import ShownInNotebook
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.estimator import Estimator, check_finite, to_unit
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.problem import TikhonovProblem, check_weight
from deconv_cli.solvers.solution import Progress, Solution, StoppingRule, default_tolerance
from deconv_cli.solvers.solver import build_inverse, choose_method, find_solver
from deconv_cli.vocabulary import Size, format_size


class PseudoInverse(Estimator, ShownInNotebook):
    """The map from outputs of a convolution back to images.

    It is differentiable in the outputs and, if the taps require a gradient, in the taps as they were when it was built.

    Args:
        kernel: canonical kernel, in the dtype and on the device of the arithmetic.
        image_size: size of the images to estimate.
        settings: how to invert.

    Attributes:
        problem: the problem.
        rank: of the operator; `None` if the method does not count it.

    Raises:
        ShapeError: the kernel does not fit the size.
        UsageError: settings that contradict one another.
        TooLargeError: the method does not fit the memory.
    """

    def __init__(self, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> None:
        super().__init__(kernel, image_size, settings)
        self.lam, self.penalty = settings.lam, settings.penalty
        penalty = spaced_penalty(settings.penalty, settings.spacing)
        problem = TikhonovProblem(self.operator, settings.lam, penalty=penalty)
        self.choice = choose_method(problem, settings.method, settings.max_memory)
        self.cost = find_solver(self.choice.method).cost(problem)
        self.check_memory(self.cost)
        if settings.lam > 0:
            problem = replace(problem, known_sigma_max=self.spectrum.sigma_max)
        check_weight(problem)
        self.problem = problem
        self.tolerance = default_tolerance(kernel.taps.dtype) if settings.tolerance is None else settings.tolerance
        rule = StoppingRule(self.tolerance, settings.max_iterations)
        self._inverse, self.choice = build_inverse(problem, rule, self.choice)
        self.cost = find_solver(self.choice.method).cost(problem)
        self.rank = self._inverse.rank

    def __repr__(self) -> str:
        """Describe it in one line: the kernel, both sizes, the boundary, λ and the method."""
        kernel, geometry = tuple(self.operator.kernel.shape), self.geometry
        sizes = f"{format_size(geometry.output_size)} → {format_size(geometry.image_size)}"
        boundary, method = self.settings.boundary, self.choice.method
        return f"PseudoInverse(kernel {kernel}, {sizes}, boundary {boundary}, λ {self.lam:g}, method {method})"

    def __call__(self, y: Tensor) -> Tensor:
        """Estimate the images that gave the outputs `y`; see `Estimator.solve` for its shape and the errors.

        Returns:
            Shape `(C_in, *size)` or `(B, C_in, *size)`; differentiable once in `y` and in the taps.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance; `solve` returns its outcome.
        """
        arranged = self._checked(y)
        if self._inverse.is_closed_form:
            return self.frame(self._attach(self._inverse.apply(arranged.detach()), arranged))
        return self.frame(self._solve(arranged, None).warn_for_status().value)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(C_out, *output_size)`, or a batch of them; see `Estimator.solve`."""
        return self._solve(self._checked(y), progress)

    def approximate(self, y: Tensor) -> Tensor:
        """Estimate images to about a hundredth, by one solve without a certificate; shape `(*batch, C_in, *size)`."""
        data, unit = to_unit(self._checked(y), self.n_dims)
        value = self._inverse.approximate_normal(self.operator.adjoint(data))
        return value if unit is None else unit * value

    def _checked(self, y: Tensor) -> Tensor:
        arranged = self.arrange(y)
        check_finite(y)
        self.check_memory(self.cost, self.n_images(arranged))
        return arranged

    def _solve(self, arranged: Tensor, progress: Progress | None) -> Solution:
        data, unit = to_unit(arranged.detach(), self.n_dims)
        solution = self._inverse.solve(data, progress)
        if unit is not None:
            solution = replace(solution, value=unit * solution.value)
        # Constants that nothing determines are left wherever an iteration started: the least estimate has none.
        determined, _ = self.problem.split_null_space(solution.value)
        value = self._attach(determined, arranged)
        return solution if value is solution.value else replace(solution, value=value)

    def _attach(self, value: Tensor, arranged: Tensor) -> Tensor:
        taps = self.kernel.taps
        return attach_gradient(value, arranged, taps, self._inverse, self.spectrum if self.problem.lam > 0 else None)


def attach_gradient(value: Tensor, y: Tensor, taps: Tensor, inverse: Inverse, spectrum: Spectrum | None) -> Tensor:
    """Make an estimate a differentiable function of its data and kernel, if either requires a gradient.

    `value` is the estimate of `inverse` for `y`, computed without a graph, and `taps` the kernel that it was built for.
    The spectrum tells where σmax is attained; it is needed for λ > 0 and a kernel that requires a gradient.
    """
    if not (torch.is_grad_enabled() and (y.requires_grad or taps.requires_grad)):
        return value
    attached: Tensor = _Estimate.apply(y, taps, value, inverse, spectrum)  # type: ignore[no-untyped-call]
    return attached


class _Estimate(Function):
    """An estimate that is known already, with the derivatives of the inverse that gave it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        y: Tensor,
        taps: Tensor,
        value: Tensor,
        inverse: Inverse,
        spectrum: Spectrum | None,
    ) -> Tensor:
        ctx.inverse, ctx.spectrum = inverse, spectrum
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(y, taps, value)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # noqa: ANN401
        in_data, in_taps = None, None
        with torch.no_grad():
            if not ctx.needs_input_grad[1]:
                determined, _ = ctx.inverse.problem.split_null_space(g)
                in_data = ctx.inverse.solve_transposed(determined)
            else:
                y, _, x = ctx.saved_tensors
                in_data, in_taps = _gradients(ctx.inverse, ctx.spectrum, y, x, g)
        if torch.is_grad_enabled():  # a second derivative may be wanted
            sources = (g, *ctx.saved_tensors)
            in_data, in_taps = (
                None if gradient is None else _Final.apply(gradient, *sources)  # type: ignore[no-untyped-call]
                for gradient in (in_data, in_taps)
            )
        return in_data if ctx.needs_input_grad[0] else None, in_taps, None, None, None


class _Final(Function):
    """A gradient that refuses to be differentiated in what it depends on."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:  # noqa: ANN401
        return gradient.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> None:  # noqa: ANN401
        raise UsageError("the gradient of an inverse cannot be differentiated again; use first derivatives only.")


def _gradients(inverse: Inverse, spectrum: Spectrum | None, y: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients in data and kernel, from `y`, the estimate `x` and the gradient `g` in the estimate."""
    problem = inverse.problem
    forward = problem.operator.forward
    if problem.lam > 0:
        determined, lost = problem.split_null_space(g)
        w, _ = problem.split_null_space(inverse.solve_normal(determined))
    else:
        w = inverse.solve_normal(g)
        lost = g - inverse.solve(forward(g)).warn_for_status().value
    image = forward(w)
    pulled = None if lost is None else inverse.solve_transposed(x)
    residual = y - forward(x)
    taps = problem.operator.kernel.detach().requires_grad_()
    with torch.enable_grad(), full_precision_convolutions(taps.device):
        operator = problem.operator.with_kernel(taps)
        phi = (operator.forward(w) * residual).sum() - (operator.forward(x) * image).sum()
        if lost is not None and pulled is not None:
            phi = phi + (operator.forward(lost) * pulled).sum()
        if problem.lam > 0:
            assert spectrum is not None
            roughness = (problem.penalty_operator.forward(w) * problem.penalty_operator.forward(x)).sum()
            phi = phi - problem.lam * peak_gain(taps, spectrum).square() * roughness
        (gradient,) = torch.autograd.grad(phi, taps)
    return image, gradient
