"""Linear operators: blurs, boundary rules, penalties and preconditioners; and the derivative of a function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from numbers import Real

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError, check_type
from deconv_cli.operators import synchronize
from deconv_cli.vocabulary import is_whole

Shape = tuple[int, ...]

# Columns of a matrix that are written out at once.
MAX_COLUMNS = 32


def as_shape(shape: Sequence[int]) -> Shape:
    """Return a shape as a tuple, or refuse anything but a sequence of whole numbers."""
    sides: list[object] = list(shape) if isinstance(shape, tuple | list) else [None]
    if not all(map(is_whole, sides)):
        raise UsageError(f"a shape must be a tuple of whole numbers, but is {shape!r}.")
    return tuple(map(int, shape))


class LinearOperator(ABC):
    """A linear map between tensors that keep their image shape.

    `forward` takes a tensor of shape `(*batch, *input_shape)` to `(*batch, *output_shape)`; `adjoint` goes back.
    Operators are immutable, and know nothing of the solvers that invert them. `A(x)`, `A.H`, `A @ B`, `A + B` and `2 *
    A` mean the same as for matrices.

    Attributes:
        input_shape: of the argument of `forward`, without batches.
        output_shape: of its result, without batches.
        dtype: of the operator's tensors; `None` if it takes any dtype.
        device: of the operator's tensors.
    """

    input_shape: Shape
    output_shape: Shape
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to `x` of shape `(*batch, *input_shape)`."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the conjugate transpose to `y` of shape `(*batch, *output_shape)`."""

    def forward_parts(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Apply the operator to images, and yield the result some planes at a time if it is computed so.

        Yields:
            A part of the first axis of space, and the result there; by default one part with all of it.
        """
        yield slice(None), self.forward(x)

    def adjoint_parts(self, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Apply the conjugate transpose in the same way."""
        yield slice(None), self.adjoint(y)

    def apply_gram(self, x: Tensor) -> Tensor:
        """Apply AᴴA to `x` of shape `(*batch, *input_shape)`; some operators do so without storing all of Ax."""
        return self.adjoint(self.forward(x))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the operator to `x` of shape `(*batch, *input_shape)`.

        Raises:
            ShapeError: `x` does not end in the input shape.
        """
        check_type(x, Tensor, "the input of an operator")
        n_axes = len(self.input_shape)
        if x.ndim < n_axes or x.shape[x.ndim - n_axes :] != self.input_shape:
            raise ShapeError(
                f"the operator takes tensors whose shape ends in {self.input_shape}, but this one has "
                f"{tuple(x.shape)}; reshape it, or build the operator for its size."
            )
        return self.forward(x)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """The adjoint as an operator."""
        return Composed((self,), self.output_shape, self.input_shape, self.adjoint, self.forward)

    @property
    def gram(self) -> LinearOperator:
        """The operator AᴴA."""
        return self.H @ self

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Apply `other` first, then this operator.

        Raises:
            ShapeError: this operator does not take what `other` gives.
        """
        if not isinstance(other, LinearOperator):
            return NotImplemented
        if other.output_shape != self.input_shape:
            raise ShapeError(
                f"operators do not chain: the first returns {other.output_shape}, but the next takes "
                f"{self.input_shape}; build one of them for the size of the other."
            )
        return Composed(
            (self, other),
            other.input_shape,
            self.output_shape,
            lambda x: self.forward(other.forward(x)),
            lambda y: other.adjoint(self.adjoint(y)),
        )

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """Add two operators of the same shapes.

        Raises:
            ShapeError: their shapes differ.
        """
        if not isinstance(other, LinearOperator):
            return NotImplemented
        if (other.input_shape, other.output_shape) != (self.input_shape, self.output_shape):
            raise ShapeError(
                f"operators do not add: one takes {self.input_shape} to {self.output_shape}, the other "
                f"{other.input_shape} to {other.output_shape}; add operators of the same shapes."
            )
        return Composed(
            (self, other),
            self.input_shape,
            self.output_shape,
            lambda x: self.forward(x) + other.forward(x),
            lambda y: self.adjoint(y) + other.adjoint(y),
        )

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        """Subtract an operator of the same shapes."""
        return self + (-1.0) * other

    def __neg__(self) -> LinearOperator:
        """Change the sign of the operator."""
        return (-1.0) * self

    def __mul__(self, factor: float) -> LinearOperator:
        """Scale the operator by a real number."""
        return factor * self

    def __rmul__(self, factor: float) -> LinearOperator:
        """Scale the operator by a real number."""
        number: object = factor
        if not isinstance(number, Real):
            return NotImplemented
        return Composed(
            (self,),
            self.input_shape,
            self.output_shape,
            lambda x: factor * self.forward(x),
            lambda y: factor * self.adjoint(y),
        )

    def as_matrix(self) -> Tensor:
        """Write the operator out as a dense matrix; for small tests only.

        Returns:
            Shape `(n_outputs, n_inputs)`, of the operator's dtype, or float64, and on its device.
        """
        n_inputs = math.prod(self.input_shape)
        basis = torch.eye(n_inputs, dtype=self.dtype or torch.float64, device=self.device)
        basis = basis.reshape(n_inputs, *self.input_shape)
        # A few images at a time: a large kernel may extend each to many times its own size.
        columns = [self.forward(images).reshape(len(images), -1) for images in basis.split(MAX_COLUMNS)]
        return torch.cat(columns).T


class Composed(LinearOperator):
    """An operator made of two functions: sums, products, multiples and adjoints of other operators, its parts."""

    def __init__(
        self,
        parts: Sequence[LinearOperator],
        input_shape: Shape,
        output_shape: Shape,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
    ) -> None:
        self.input_shape = input_shape
        self.output_shape = output_shape
        self._forward = forward
        self._adjoint = adjoint
        for part in parts:
            self.dtype, self.device = self.dtype or part.dtype, self.device or part.device

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to `x` of shape `(*batch, *input_shape)`."""
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the conjugate transpose to `y` of shape `(*batch, *output_shape)`."""
        return self._adjoint(y)


class SymmetricOperator(LinearOperator):
    """An operator that is its own transpose."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose, which is the operator itself."""
        return self.forward(y)


class Identity(SymmetricOperator):
    """The operator that changes nothing; `shape` is that of its input without batches."""

    def __init__(self, shape: Shape) -> None:
        self.input_shape = self.output_shape = as_shape(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` as it is."""
        return x


def check_tensor(found: object, role: str) -> None:
    """Refuse, by `UsageError`, anything but a dense tensor of torch with values; `role` names it in the message."""
    if not isinstance(found, Tensor):
        maker = "make_kernel makes one of a formula" if isinstance(found, str) else "torch.as_tensor makes one"
        what = f"a {type(found).__name__}; {maker}."
    elif found.layout != torch.strided:
        what = f"one of layout {found.layout}; to_dense makes one."
    elif found.is_meta:
        what = "one without values, on the device meta."
    else:
        return
    raise UsageError(f"{role} must be a dense torch.Tensor, but is {what}")


Function = Callable[[Tensor], Tensor]
"""A function of a batch: maps `(B, *input_shape)` to `(B, *output_shape)`, each member independently."""


def check_image(image: Tensor, role: str) -> None:
    """Refuse anything but a real, finite tensor, by `UsageError` or `MalformedInputError`; `role` names it."""
    check_tensor(image, role)
    if image.is_complex():
        raise MalformedInputError(f"{role} must be real, but is {image.dtype}.")
    if image.is_floating_point() and not synchronize.are_finite(image):
        bad = torch.nonzero(~torch.isfinite(image))
        raise MalformedInputError(
            f"{role} holds {len(bad)} values that are NaN or infinite, the first at {tuple(bad[0].tolist())}; "
            "replace them first: a single one spoils a whole FFT."
        )


_Graph = tuple[Tensor, Tensor, Tensor, Tensor]
"""The graph of f and of Jᵀu: x and y of shape `(B, ...)`, a dummy u of the shape of y, and Jᵀu."""


class Linearization(LinearOperator):
    """The derivative J of a function f at one point: f(x + d) ≈ f(x) + Jd, exactly if f is affine.

    The products with J and Jᵀ come from one graph: Jᵀu is linear in u, so that its own derivative in the direction d is
    Jd (Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6, 1994, applied to the first
    derivative). Only backward formulas are needed, which every layer of torch has.

    Args:
        function: f, on batches: maps `(B, *input_shape)` to `(B, *output_shape)`, each member independently, such as
            a `torch.nn.Module` in evaluation mode.
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
        self.value = self._graph[1].detach()[0]
        self.output_shape = tuple(self.value.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Compute Jd for a direction of shape `(*batch, *input_shape)`."""
        d = x.reshape(-1, *self.input_shape)
        _, _, u, pulled = self._of_batch(len(d))
        (image,) = torch.autograd.grad(pulled, u, d, retain_graph=True)
        return image.reshape(*x.shape[: x.ndim - len(self.input_shape)], *self.output_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """Compute Jᵀu for `u` of shape `(*batch, *output_shape)`."""
        u = y.reshape(-1, *self.output_shape)
        at, value, _, _ = self._of_batch(len(u))
        (pulled,) = torch.autograd.grad(value, at, u, retain_graph=True)
        return pulled.reshape(*y.shape[: y.ndim - len(self.output_shape)], *self.input_shape)

    def _of_batch(self, n: int) -> _Graph:
        """Return the graph for a batch of `n`; the last one is kept, since an iteration needs the same again."""
        if len(self._graph[0]) != n:
            self._graph = self._trace(n)
        return self._graph

    def _trace(self, n: int) -> _Graph:
        with torch.enable_grad():
            x = self._at.expand(n, *self._at.shape).clone().requires_grad_()
            y = self._function(x.clone())  # a layer may work in place, which a leaf of the graph does not allow
            if not y.requires_grad:
                raise UsageError(
                    "torch must be able to differentiate the function, but its output does not depend on its input; "
                    "check that the function neither detaches nor rounds."
                )
            u = torch.zeros_like(y, requires_grad=True)
            (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
        return x, y, u, pulled
