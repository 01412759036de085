"""Layers of any size under any border, by conjugate gradients on the true operator.

The preconditioner is the layer on a torus: its phases are channels there (`operators/phases.py`), so that AᴴA and AAᴴ
are a small matrix at each frequency. For λ > 0 it preconditions the normal equations. The Moore–Penrose inverse has two
cases, for pixels that some output depends on and outputs that depend on some pixel:

- the outputs determine the pixels: the normal equations AᴴAx = Aᴴy, preconditioned by (KᴴK + ε)⁻¹;
- the pixels have room for every output: AAᴴz = y and x = Aᴴz, preconditioned by (KKᴴ + ε)⁻¹. A step in the data stays
  in the range of Aᴴ, where the solution of least norm lies (Björck, Numerical Methods for Least Squares Problems, 1996,
  section 7.4.3, without a preconditioner).

The channels suggest the case, and a known small image tests it. If neither holds, plain conjugate gradients start from
zero. Groups are a batch, each with step lengths of its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop, half_spectrum, norm, space_axes
from deconv_cli.operators.circulant import multiply_lines, next_fast_size, to_float64, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import GridAxis
from deconv_cli.operators.layer_convolution import GroupedLayer, LayerConvolution
from deconv_cli.operators.linear_operator import LinearOperator, SymmetricOperator
from deconv_cli.operators.phases import Part, rearranged_taps, tap_table, whole_layer
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.cgls import RitzValues, iterate
from deconv_cli.solvers.fourier import block_norms, gram_inverse_blocks
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iterative import PRECONDITIONER_LAMBDA, TORUS_MARGIN
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import MIN_LAMBDA_IN_FLOAT32, TikhonovProblem, check_ramps
from deconv_cli.solvers.solution import Progress, Solution, StoppingRule
from deconv_cli.solvers.solver import CALL_OPERATIONS, Cost, Solver, general_refusal
from deconv_cli.vocabulary import Size

# A known image must be found again this well from its outputs, or the outputs do not determine it.
MAX_PROBE_ERROR = 1e-4
# Its least length in kernels, and in pixels beyond that.
PROBE_KERNELS, PROBE_MARGIN = 4, 8
PROBE_RULE = StoppingRule(tolerance=1e-6, max_iterations=300)
# Measured for layers of trained networks: 10 to 60 steps.
N_STEPS = 30
# Fixed cost of a step, however small the layer is.
OPERATIONS_PER_STEP = 2 * CALL_OPERATIONS
# Symbols of the layer that are alive at once, and images.
N_SYMBOLS, N_IMAGES = 3, 12


class LayeredSolver(Solver):
    """Preconditioned conjugate gradients, which cover every layer that has one solution."""

    why = "an iteration, preconditioned by the layer with a circular boundary, covers all sizes and borders"
    takes_plain = False
    takes_layers = True
    takes_singular = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover all that is determined."""
        if not isinstance(problem.operator, LayerConvolution):
            return "is for layers with a stride, a dilation or groups, and for transposed ones"
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the iterations, the symbols of the preconditioner, and a few images."""
        layer = problem.operator
        assert isinstance(layer, LayerConvolution)
        n_inputs, n_outputs = math.prod(layer.input_shape), math.prod(layer.output_shape)
        n_products = (n_inputs if layer.options.transposed else n_outputs) * layer.kernel[0].numel()
        # A step applies the layer and its transpose; without λ a small known image is found again first.
        n_steps = N_STEPS if problem.lam > 0 else 1.5 * N_STEPS
        # The matrix at each frequency is inverted once, and applied in every step.
        channels = layer.plain_taps(layer.kernel).shape[1:3]
        side = min(channels)
        n_places = layer.options.groups * math.prod(half_spectrum(_torus_of(layer)))
        blocks = n_places * (side**3 + n_steps * 8 * side**2)
        n_operations = 2 * n_steps * (n_products + OPERATIONS_PER_STEP) + blocks
        n_symbol = N_SYMBOLS * 16 * n_places * math.prod(channels)
        return Cost(n_operations, n_symbol, N_IMAGES * 8 * (n_inputs + n_outputs))

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Build the preconditioner."""
        check_ramps(problem)
        return LayeredInverse(problem, rule)


LAYERED = LayeredSolver()


class LayeredInverse(Inverse):
    """Inverse of one layer, ready for many outputs; see the module."""

    def __init__(self, problem: TikhonovProblem, rule: StoppingRule) -> None:
        self.problem, self._rule = problem, rule
        wide = problem.operator if problem.runs_in_own_precision else problem.operator.in_float64()
        assert isinstance(wide, LayerConvolution)
        self._dtype, self._layer = wide.kernel.dtype, GroupedLayer(wide)
        self._touched, self._seeing = (wide.touched(of_inputs=is_input).to(self._dtype) for is_input in (True, False))
        self._penalty: LinearOperator | None = None
        if problem.weight > 0:
            periodic = wide.boundary.is_periodic
            self._penalty = find_penalty(problem.penalty).operator(self._layer.input_shape, periodic=periodic)

    @cached_property
    def _of_images(self) -> LinearOperator:
        """About (AᴴA + μLᴴL)⁻¹ on a torus, with a small μ for λ = 0."""
        return self._precondition(is_input=True)

    @cached_property
    def _of_data(self) -> LinearOperator:
        """About (AAᴴ + μ)⁻¹ on a torus, with a small μ."""
        return self._precondition(is_input=False)

    def _precondition(self, *, is_input: bool) -> LinearOperator:
        """Invert Gram matrices of the phases' symbol from the fine grid to the coarse one at each frequency."""
        layer = self._layer.layer
        axes, groups = layer.grid_axes, layer.options.groups
        part, is_fine = whole_layer(axes), is_input != layer.options.transposed
        taps = rearranged_taps(to_float64(layer.kernel), axes, groups, on_torus=True)
        torus = _torus_of(layer)
        origin = tuple(along.before for along in part.axes)
        symbol = torus_symbol(taps.flatten(0, 1), torus, origin).unflatten(-2, taps.shape[:2]).movedim(-3, 0)
        blocks = symbol if is_fine else symbol.mH
        penalty = torch.ones(plane := blocks.shape[1:-2], dtype=blocks.real.dtype, device=blocks.device)
        weight = self.problem.weight
        if is_input and weight > 0:
            if all(axis.stride == 1 for axis in axes):
                penalty = find_penalty(self.problem.penalty).symbol(torus, penalty.dtype, penalty.device)
        else:
            weight = PRECONDITIONER_LAMBDA * synchronize.as_number(block_norms(symbol).max()) ** 2
        inverse = gram_inverse_blocks(blocks, weight, penalty.expand(blocks.shape[0], *plane))
        shape = self._layer.input_shape if is_input else self._layer.output_shape
        return TorusInverse(inverse.to(layer.kernel.dtype.to_complex()), torus, shape, part if is_fine else None)

    @cached_property
    def _side(self) -> str:
        """The equations of the Moore–Penrose solution: of `image`, of `data`, or `plain` if neither is sound."""
        n_outputs, n_inputs = self._layer.layer.plain_taps(self._layer.layer.kernel).shape[1:3]
        sides = ("image", "data") if n_outputs >= n_inputs else ("data", "image")
        small = _smaller(self.problem.operator)
        tried = self if small is None else LayeredInverse(replace(self.problem, operator=small), self._rule)
        return next((side for side in sides if tried._is_sound(side)), "plain")

    def _is_sound(self, side: str) -> bool:
        """Solve for known random numbers on one side within few iterations, and compare."""
        layer, is_image = self._layer, side == "image"
        shape, mask = (layer.input_shape, self._touched) if is_image else (layer.output_shape, self._seeing)
        like = layer.layer.kernel
        known = mask * synchronize.normal_numbers(like, (layer.layer.options.groups, *shape), seed=0)
        if is_image:
            found = self._solve_side(side, layer.forward(known), rule=PROBE_RULE).value
        else:
            found = layer.forward(self._solve_side(side, known, rule=PROBE_RULE).value)
        n_dims = len(shape)
        return synchronize.holds_everywhere(norm(found - known, n_dims) <= MAX_PROBE_ERROR * norm(known, n_dims))

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`."""
        data = self._divide(y)
        if self._penalty is None:
            found = self._solve_side(self._side, data, progress)
        else:
            equations = NormalEquations(self._layer, data, self._penalty, self.problem.weight)
            found = self._iterate(equations, self._of_images, progress, bounds_distance=True)
        x = self._unite(found.value, y)
        return replace(found, value=x, certificate=synchronize.as_number(self.problem.certificate(x, y).max()))

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, *size)`."""
        right = self._divide(g)
        if self._penalty is None and self._side != "image":
            p = self._divide(self.solve_transposed(g))
            return self._unite(self._solve_side(self._side, p).warn_for_status().value, g)
        return self._unite(self._invert_gram(right), g)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, *size)`."""
        right = self._divide(g)
        if self._penalty is not None or self._side == "image":
            return self._unite(self._layer.forward(self._invert_gram(right)), g)
        preconditioner = self._of_data if self._side == "data" else None
        equations = NormalEquations(self._layer.H, right, is_derived=True)
        found = self._iterate(equations, preconditioner).warn_for_status()
        return self._unite(self._seeing * found.value, g)

    def _solve_side(
        self, side: str, data: Tensor, progress: Progress | None = None, rule: StoppingRule | None = None
    ) -> Solution:
        """Solve with λ = 0 for divided data, by the equations of one side."""
        layer = self._layer
        if side == "plain":
            return self._iterate(NormalEquations(layer, data), None, progress, rule, bounds_distance=True)
        if side == "image":
            found = self._iterate(NormalEquations(layer, data), self._of_images, progress, rule, bounds_distance=True)
            return replace(found, value=self._touched * found.value)
        zero = layer.adjoint(torch.zeros_like(data))
        equations = NormalEquations(layer.H, zero, g=self._seeing * data)
        found = self._iterate(equations, self._of_data, progress, rule, bounds_distance=True)
        return replace(found, value=layer.adjoint(found.value))

    def _invert_gram(self, right: Tensor) -> Tensor:
        """Solve (AᴴA + μLᴴL) x = g for a divided `g`, for λ = 0 in the pixels that outputs depend on."""
        zero = self._layer.forward(torch.zeros_like(right))
        if self._penalty is not None:
            equations = NormalEquations(self._layer, zero, self._penalty, self.problem.weight, g=right)
            return self._iterate(equations, self._of_images).warn_for_status().value
        equations = NormalEquations(self._layer, zero, g=self._touched * right)
        return self._touched * self._iterate(equations, self._of_images).warn_for_status().value

    def _iterate(
        self,
        equations: NormalEquations,
        preconditioner: LinearOperator | None,
        progress: Progress | None = None,
        rule: StoppingRule | None = None,
        *,
        bounds_distance: bool = False,
    ) -> Solution:
        is_weak = 0 < self.problem.lam < MIN_LAMBDA_IN_FLOAT32
        determined = self._determined if is_weak else None
        return iterate(
            equations,
            rule or self._rule,
            preconditioner=preconditioner,
            progress=progress,
            bounds_distance=bounds_distance,
            ritz=RitzValues(preconditioner, math.inf, determined=determined, groups=(self._layer.n_groups,)),
        )

    def _determined(self, images: Tensor) -> Tensor:
        """Take constants that nothing determines out of divided images."""
        return self._layer.divide(self.problem.split_null_space(self._layer.unite(images))[0])

    def _divide(self, images: Tensor) -> Tensor:
        return self._layer.divide(images.to(self._dtype))

    def _unite(self, images: Tensor, like: Tensor) -> Tensor:
        return self._layer.unite(images).to(like.dtype)


def _smaller(layer: Convolution) -> LayerConvolution | None:
    """Give the same layer for a smaller image whose borders still lie apart; `None` if it is as small already.

    Any loss of the outputs happens along the borders, or at every size.
    """
    assert isinstance(layer, LayerConvolution)
    sizes = []
    for n, axis in zip(layer.geometry.image_size, layer.grid_axes, strict=True):
        step = 1 if layer.options.transposed else axis.stride
        least = step * (PROBE_KERNELS * len(tap_table(axis, on_torus=True)[0]) + PROBE_MARGIN)
        sizes.append(n - step * max((n - least) // step, 0))
    if tuple(sizes) == layer.geometry.image_size:
        return None
    return LayerConvolution(
        layer.kernel, tuple(sizes), layer.options, padding=layer.geometry.pads, boundary=layer.boundary
    )


def _torus_of(layer: LayerConvolution) -> Size:
    goes_around = layer.boundary.is_periodic
    return tuple(
        _torus_length(axis, len(tap_table(axis, on_torus=True)[0]), goes_around=goes_around) for axis in layer.grid_axes
    )


def _torus_length(axis: GridAxis, n_taps: int, *, goes_around: bool) -> int:
    """Give the pixels of a torus for the phases of an axis: their own if the image goes around it."""
    n_pixels = max(-(-axis.n_fine // axis.stride), axis.n_coarse)
    if goes_around and axis.n_fine == axis.stride * n_pixels:
        return n_pixels
    return next_fast_size(n_pixels + max(n_taps - 1, min(TORUS_MARGIN, n_pixels)))


class TorusInverse(SymmetricOperator):
    """`Eᵀ B E`: zero-pad the phases of images onto a torus, multiply by a matrix at each frequency, crop.

    The blocks are Hermitian, of shape `(groups, *plane, C, C)`; `shape` is that of the images of one group. `part`
    defines how pixels are rearranged to phases; `None` if they are not.
    """

    def __init__(self, blocks: Tensor, torus: Size, shape: tuple[int, ...], part: Part | None) -> None:
        self.input_shape = self.output_shape = shape
        self._plane, self._torus, self._part = blocks.shape[1:-2], torus, part
        self._blocks = blocks.flatten(0, -3).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, groups, C, *size)`."""
        n_axes = len(self._torus)
        phases = x if self._part is None else self._part.take_fine(x)
        size = tuple(phases.shape[-n_axes:])
        axes = space_axes(n_axes)
        spectrum = torch.fft.rfftn(phases, s=self._torus, dim=axes).flatten(-n_axes).transpose(-3, -2)
        n_groups = spectrum.shape[-2]
        solved = multiply_lines(self._blocks, spectrum.flatten(-2)).unflatten(-1, (n_groups, *self._plane))
        images = torch.fft.irfftn(solved.movedim(-n_axes - 1, -n_axes - 2), s=self._torus, dim=axes)
        images = crop(images, (0,) * n_axes, size)
        if self._part is None:
            return images
        result = torch.zeros_like(x)
        self._part.put_fine(result, images)
        return result
