"""The derivative of any function of torch as an operator; of an affine function, its linear part.

The products with the Jacobian and its transpose come from one graph: Jᵀu is linear in u, so that its own derivative in
the direction d is Jd (Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6, 1994, applied to the
first derivative). Nothing but backward formulas is needed, which every layer of torch has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.argument_types import check_type
from deconv_cli.errors import UsageError
from deconv_cli.operators.linear_operator import LinearOperator

Function = Callable[[Tensor], Tensor]
"""A function of a batch: takes `(B, *input_shape)` to `(B, *output_shape)`, each member by itself."""


@dataclass(frozen=True, eq=False)
class _Graph:
    """The graph of f and of Jᵀu: `x` and `y` of shape `(B, ...)`, a dummy `u` of the shape of `y`, and Jᵀu."""

    x: Tensor
    y: Tensor
    u: Tensor
    pulled: Tensor


class Linearization(LinearOperator):
    """The derivative J of a function f at one point: f(x + d) ≈ f(x) + Jd, exactly where f is affine.

    Args:
        function: f, on batches: takes `(B, *input_shape)` to `(B, *output_shape)`, each member by itself. A
            `torch.nn.Module` in evaluation mode is one.
        at: the point, shape `input_shape`; its dtype and device are those of the arithmetic.

    Attributes:
        value: f at the point, shape `output_shape`; for an affine function f(x) = Ax + b at zero that is b.

    Raises:
        UsageError: f does not depend on its input, or not in a way that torch differentiates.
    """

    def __init__(self, function: Function, at: Tensor) -> None:
        if not callable(function):
            raise UsageError(f"the function must be callable, but is of type {type(function).__name__}.")
        check_type(at, Tensor, "the point")
        self._function, self._at = function, at.detach()
        self.input_shape = tuple(at.shape)
        self.dtype, self.device = at.dtype, at.device
        self._graph = self._trace(1)
        self.value = self._graph.y.detach()[0]
        self.output_shape = tuple(self.value.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Compute Jd for a direction of shape `(*batch, *input_shape)`."""
        d = x.reshape(-1, *self.input_shape)
        graph = self._of_batch(len(d))
        (image,) = torch.autograd.grad(graph.pulled, graph.u, d, retain_graph=True)
        return image.reshape(*x.shape[: x.ndim - len(self.input_shape)], *self.output_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """Compute Jᵀu for `u` of shape `(*batch, *output_shape)`."""
        u = y.reshape(-1, *self.output_shape)
        graph = self._of_batch(len(u))
        (pulled,) = torch.autograd.grad(graph.y, graph.x, u, retain_graph=True)
        return pulled.reshape(*y.shape[: y.ndim - len(self.output_shape)], *self.input_shape)

    def _of_batch(self, n: int) -> _Graph:
        """Give the graph for a batch of `n`; the last one is kept, since an iteration asks for the same again."""
        if len(self._graph.x) != n:
            self._graph = self._trace(n)
        return self._graph

    def _trace(self, n: int) -> _Graph:
        with torch.enable_grad():
            x = self._at.expand(n, *self._at.shape).clone().requires_grad_()
            y = self._function(x.clone())  # a layer may work in place, which a leaf of the graph does not allow
            if not y.requires_grad:
                raise UsageError(
                    "the function should depend on its input in a way that torch differentiates, but its output does "
                    "not; check that it neither detaches nor rounds it."
                )
            u = torch.zeros_like(y, requires_grad=True)
            (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
        return _Graph(x, y, u, pulled)
