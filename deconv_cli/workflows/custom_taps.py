"""Convolutions whose taps are any function of pixel and weight: apply them, and estimate what they were applied to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from deconv_cli.diagnostics.residual import ResidualSummary, summarize_residual
from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.receptive_field import ReceptiveFieldConv2d
from deconv_cli.layer_options import LayerOptions, PerAxis
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.tap_convolution import Tap, check_elementwise
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import Light, PaddingLike, Size, check_dimensions, format_percent
from deconv_cli.workflows.apply_kernel import as_bias, refuse_unknown, subtract_bias
from deconv_cli.workflows.arithmetic import as_any_kernel, check_image, check_single_kernel, pick_dtype
from deconv_cli.workflows.planes import Planes
from deconv_cli.workflows.resolution import Reasons, RecordedConvolution, resolve
from deconv_cli.workflows.tap_model import TapModel, find_tap
from deconv_cli.workflows.tap_solver import TapSolver
from deconv_cli.workflows.trust import Doubt, DoubtReason, doubt_solver

LAMBDA = 1e-6
DETERMINED = 1e-3
"""Share of white noise in the null space of the derivative up to which the outputs count as determining the image."""
TAKEN = (
    "defaults",
    "dimensions",
    "padding",
    "stride",
    "dilation",
    "groups",
    "transposed",
    "output_padding",
    "input_size",
    "boundary",
    "light",
    "lam",
    "penalty",
    "tolerance",
    "max_iterations",
    "max_memory",
    "dtype",
)
"""The settings that the inversion of custom taps uses."""


@dataclass(frozen=True, eq=False)
class TapReconstruction:
    """An estimate of what a convolution with taps φ(pixel, weight) was applied to.

    Attributes:
        image: the estimate, shape `(C_in, *size)` or `(B, C_in, *size)`.
        solution: how it was obtained, for all images together: the worst status and certificate, the most iterations.
        settings: what was resolved.
        reasons: why boundary and λ are what they are.
        sigma_max: the largest singular value of the convolution that the taps are near the start: the unit of λ.
        residual: y − F(x̂) in numbers.
        undetermined: the part of the image that the outputs leave open around the estimate, from 0 to 1.
    """

    image: Tensor
    solution: Solution
    settings: ResolvedSettings
    reasons: Reasons
    sigma_max: float
    residual: ResidualSummary
    undetermined: float

    @property
    def is_determined(self) -> bool:
        """Whether the outputs alone, without λ, determine the image around the estimate."""
        return self.undetermined <= DETERMINED

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """Why not to trust the estimate as it is; empty where nothing speaks against it."""
        found = doubt_solver(self.solution)
        if self.settings.lam == 0 and not self.is_determined:
            part = f"{format_percent(self.undetermined)} of the image"
            found.append(
                Doubt(DoubtReason.SOLVER, f"{part} is left open by the data, and stays as in the start; {_ADVICE}")
            )
        return tuple(found)


_ADVICE = "use a λ above 0, or more output channels"


def forward_taps(
    x: Tensor,
    kernel: Tensor,
    tap: Tap | str,
    *,
    dimensions: int | None = None,
    padding: PaddingLike = "same",
    boundary: str = "zero",
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    bias: Tensor | None = None,
    dtype: torch.dtype | str | None = None,
) -> Tensor:
    """Compute `y[o, m] = Σ φ(x[i, m + d − p], kernel[o, i, d])` over all input channels i and taps d.

    Args:
        x: shape `(C_in, *size)` or `(B, C_in, *size)`.
        kernel: the weights, as the kernel of `forward`, but not a `KernelField`.
        tap: φ, element by element on tensors that broadcast; or its name in `TAPS`.
        dimensions: as of `forward`.
        padding: as of `forward`.
        boundary: as of `forward`; pixels outside go through φ like all others.
        stride: as of `forward`.
        dilation: as of `forward`.
        bias: added to each output channel, shape `(C_out,)`.
        dtype: precision of the arithmetic; by default float64 for float64 images, else float32.

    Returns:
        Shape `(C_out, *output size)` or `(B, C_out, *output size)`.

    Raises:
        ShapeError: kernel, bias and images do not fit one another.
        UsageError: a tap that fails, that gives no number for each pixel, or that is no function of one pixel.
        MalformedInputError: images or kernels that are not finite, or outputs that are not.
    """
    check_image(x, "the image")
    rule = as_rule(boundary)
    refuse_unknown(rule)
    precision = pick_dtype(dtype, x, x.device)
    dimensions = check_dimensions(dimensions)
    weights = as_any_kernel(check_single_kernel(kernel), x.device, precision, dimensions)
    layer = LayerOptions(stride=stride, dilation=dilation)
    model = TapModel(find_tap(tap), weights, padding, rule).with_layer(layer)
    planes = Planes.of(x, weights, dimensions)

    def apply(weights: Tensor, image: Tensor) -> Tensor:
        convolution = model.convolution(tuple(image.shape[1:]), weights)
        check_elementwise(model.tap, image.detach(), weights.detach().flatten(2)[..., 0])
        return convolution.forward(image)

    y = model.for_each_image(apply, None, (x if planes is None else planes.split(x)).to(precision))
    n_bad = synchronize.as_index((~torch.isfinite(y.detach())).sum())
    if n_bad:
        raise MalformedInputError(
            f"the taps give NaN or infinite values at {n_bad} of {y.numel()} outputs; keep the pixels, and those that "
            "the boundary adds, where the tap is defined."
        )
    biased = y if bias is None else y + as_bias(bias, y, weights.n_axes)
    return biased if planes is None else planes.join(biased)


def invert_taps(
    y: Tensor,
    kernel: Tensor | ReceptiveFieldConv2d,
    tap: Tap | str | None = None,
    *,
    settings: ReconstructionSettings | None = None,
    bias: Tensor | None = None,
    start: float | Tensor = 0.0,
    input_size: Size | None = None,
    recorded: RecordedConvolution | None = None,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,  # noqa: ANN401
) -> TapReconstruction:
    """Estimate the images that `forward_taps` turned into `y`: min ‖F(x) − y‖² + λσ²max‖Lx‖², downhill from a start.

    Gauss–Newton steps solve the linearized problem, whose taps differ from pixel to pixel, by conjugate gradients.
    There may be several minima: the certificate says that the estimate is one of them, and the residual which.

    Args:
        y: shape `(C_out, *output size)` or `(B, C_out, *output size)`.
        kernel: the weights as of `forward_taps`, or a layer, whose tap, geometry and bias are taken.
        tap: φ or its name in `TAPS`; left out for a layer.
        settings: how to undo it; or give its fields one by one.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        start: where the iteration starts, a number for all pixels or an image of the shape of the estimate.
        input_size: which of several sizes the image had, where a layer has a stride.
        recorded: boundary and padding that are known from elsewhere, for settings that leave them open.
        progress: is called after every step with the iterations so far and the certificate.
        options: those fields of `ReconstructionSettings` that `TAKEN` lists; λ is 1e-6 if not given.

    Raises:
        ShapeError: kernel, bias, start and data do not fit one another.
        UsageError: settings of no use here; a tap that fails, has no gradient, or is not defined at the start.
        TooLargeError: the slopes of all taps do not fit the memory.
        MalformedInputError: data or kernels that are not finite.
    """
    if settings is not None and options:
        raise UsageError(f"settings were given as a record and as {next(iter(options))} too; use one or the other.")
    settings = ReconstructionSettings.of(**options) if settings is None else settings
    check_image(y, "the output to invert")
    dtype = pick_dtype(settings.dtype, y, y.device)
    if isinstance(kernel, ReceptiveFieldConv2d):
        _refuse_beside_layer(tap, settings)
        model = TapModel.of_layer(kernel, y.device, dtype)
        bias = kernel.bias.detach() if bias is None and kernel.bias is not None else bias
        resolved, reasons = _resolved(replace(settings, padding=kernel.padding, boundary="zero"), model, None)
    else:
        weights = as_any_kernel(check_single_kernel(kernel).detach(), y.device, dtype, settings.dimensions)
        model = TapModel(find_tap(tap), weights, "same", as_rule("zero"))
        resolved, reasons = _resolved(settings, model, recorded)
        model = replace(model, padding=resolved.padding, boundary=as_rule(resolved.boundary))
        model, input_size = model.with_layer(resolved.layer), input_size or resolved.input_size
    planes = Planes.of(y, model.kernel, resolved.dimensions)
    if planes is not None:
        y, start = planes.split(y), planes.split(start) if isinstance(start, Tensor) else start
    n_axes, axis = model.kernel.n_axes, model.kernel.channel_axis
    data = subtract_bias(y.detach().to(dtype), bias, n_axes)
    size = model.image_size(tuple(data.shape[-n_axes:]), input_size)
    shape = (*data.shape[:axis], model.kernel.n_inputs(data.shape[axis]), *size)
    solver = TapSolver(model, size, resolved, progress)
    whole = model.for_each_image(solver.solve, data, _started(start, shape, data))
    frame = model.for_each_image(lambda weights, x: solver.convolution(weights).crop_to_frame(x), None, whole)
    unexplained = data - model.for_each_image(lambda weights, x: solver.convolution(weights).forward(x), None, whole)
    return TapReconstruction(
        image=frame.contiguous() if planes is None else planes.join(frame),
        solution=solver.solution_of(frame),
        settings=resolved,
        reasons=reasons,
        sigma_max=solver.sigma_max,
        residual=summarize_residual(unexplained, data, len(size)),
        undetermined=solver.undetermined,
    )


def _refuse_beside_layer(tap: object, settings: ReconstructionSettings) -> None:
    """Refuse what a layer says itself."""
    given = "tap" if tap is not None else "boundary" if settings.boundary != "auto" else "padding"
    if tap is not None or settings.boundary != "auto" or settings.padding is not None:
        raise UsageError(f"a ReceptiveFieldConv2d has its own {given}; leave {given} out.")


def _resolved(
    settings: ReconstructionSettings, model: TapModel, recorded: RecordedConvolution | None
) -> tuple[ResolvedSettings, Reasons]:
    """Fill in what is left open, and refuse settings of no use to custom taps."""
    idle = [f.name for f in fields(settings) if f.name not in TAKEN and getattr(settings, f.name) != f.default]
    if idle:
        raise UsageError(f"{idle[0]} has no use for custom taps, which are solved by Gauss–Newton steps; leave it out.")
    if isinstance(settings.lam, str | tuple):
        raise UsageError(f"lambda must be zero or a positive number for custom taps, but is {settings.lam!r}.")
    if settings.light == Light.LINEAR:
        raise UsageError("light must be stored for custom taps, which act on the samples as they are.")
    lam = LAMBDA if settings.lam is None else settings.lam
    found = resolve(replace(settings, lam=lam, light=Light.STORED), model.kernel, recorded)
    reasons = found.reasons if settings.lam is not None else replace(found.reasons, lam="default for custom taps")
    return found.settings, reasons


def _started(start: float | Tensor, shape: Size, data: Tensor) -> Tensor:
    """Give the start as images of a shape, in the precision of the data."""
    if not isinstance(start, Tensor):
        if not math.isfinite(start):
            raise UsageError(f"start must be a finite number or an image, but is {start}.")
        return data.new_full(shape, start)
    check_image(start, "the start")
    if tuple(start.shape) != shape:
        raise ShapeError(f"start should be of the shape {shape} of the estimate, but is {tuple(start.shape)}.")
    return start.detach().to(data)
