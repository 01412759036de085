"""Derivatives of x = H⁺Aᴴy in the data and in the kernel, by one more solve and never through an iteration.

With the gradient g of some loss in x, w = H⁺g and H = AᴴA + μLᴴL, the gradient in y is Aw. The derivative in the
kernel follows from that of a pseudo-inverse of constant rank (Golub and Pereyra, The differentiation of
pseudo-inverses and nonlinear least squares problems whose variables separate, SIAM Journal on Numerical Analysis 10,
1973, eq. 4.12), applied to A stacked on √μL. It is the gradient at the present kernel of

    φ(K) = ⟨A_K w, y − Ax⟩ − ⟨Aw, A_K x⟩ − μ(K)⟨Lw, Lx⟩ + ⟨A_K g₀, AH⁺x⟩,

a scalar that depends on K through the operators A_K and through μ(K) = λσ²max(K) alone; g₀ is the part of g in the
null space of H, which is empty for λ > 0 but for constants that kernel and penalty both annihilate.

σmax is differentiated at the frequency where it is attained. Where several frequencies attain it, or where the rank
changes, there is no derivative; what is computed then is that of one of the frequencies, or of the present rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from deconv_cli.errors import UsageError
from deconv_cli.operators.convolution import full_precision_convolutions
from deconv_cli.operators.spectrum import Spectrum, peak_gain
from deconv_cli.solvers.inverse import Inverse


def attach_gradient(value: Tensor, y: Tensor, taps: Tensor, inverse: Inverse, spectrum: Spectrum | None) -> Tensor:
    """Make an estimate a differentiable function of what it was computed from.

    Args:
        value: the estimate for `y`, shape `(*batch, C_in, *size)`, computed without a graph.
        y: shape `(*batch, C_out, *output_size)`.
        taps: the kernel that `inverse` was built for, shape `(C_out, C_in, *k)`.
        inverse: what computed the estimate.
        spectrum: where the kernel's σmax is attained; needed for λ > 0 and a kernel that requires a gradient.

    Returns:
        The estimate itself, if neither `y` nor `taps` requires a gradient; else the same values with a graph, which can
        be differentiated once.
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
        raise UsageError(
            "the gradient of an inverse cannot be differentiated again, but a second derivative was wanted; "
            "use first derivatives alone."
        )


def _gradients(inverse: Inverse, spectrum: Spectrum | None, y: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients in the data and in the kernel.

    Args:
        inverse: the inverse.
        spectrum: where σmax is attained, for λ > 0.
        y: data, shape `(*batch, C_out, *output_size)`.
        x: estimate, shape `(*batch, C_in, *size)`.
        g: gradient in the estimate, of its shape.

    Returns:
        Shapes `(*batch, C_out, *output_size)` and `(C_out, C_in, *k)`.
    """
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
