"""Convolutions whose taps are any function of pixel and weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.layer_options import LayerOptions, PerAxis
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.tap_convolution import Tap, check_elementwise, convolve_taps
from deconv_cli.parts import TAPS
from deconv_cli.vocabulary import PaddingLike, check_dimensions
from deconv_cli.workflows.apply_kernel import as_bias, refuse_unknown
from deconv_cli.workflows.arithmetic import as_any_kernel, check_image, check_single_kernel, pick_dtype
from deconv_cli.workflows.planes import Planes


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
    rule, function = as_rule(boundary), find_tap(tap)
    refuse_unknown(rule)
    precision = pick_dtype(dtype, x, x.device)
    dimensions = check_dimensions(dimensions)
    weights = as_any_kernel(check_single_kernel(kernel), x.device, precision, dimensions)
    steps = LayerOptions(stride=stride, dilation=dilation).over_axes(weights.n_axes)
    planes = Planes.of(x, weights, dimensions)

    def apply(weights: Tensor, image: Tensor) -> Tensor:
        check_elementwise(function, image.detach(), weights.detach().flatten(2)[..., 0])
        return convolve_taps(
            function, weights, image, padding=padding, boundary=rule, stride=steps.stride, dilation=steps.dilation
        )

    y = _for_each_image(apply, weights, (x if planes is None else planes.split(x)).to(precision))
    n_bad = synchronize.as_index((~torch.isfinite(y.detach())).sum())
    if n_bad:
        raise MalformedInputError(
            f"the taps give NaN or infinite values at {n_bad} of {y.numel()} outputs; keep the pixels, and those that "
            "the boundary adds, where the tap is defined."
        )
    biased = y if bias is None else y + as_bias(bias, y, weights.n_axes)
    return biased if planes is None else planes.join(biased)


def find_tap(tap: Tap | str) -> Tap:
    """Give the tap of a name, or the function itself.

    Raises:
        UsageError: no such name, or neither a name nor a function.
    """
    found: object = TAPS[TAPS.check(tap)] if isinstance(tap, str) else tap
    if not callable(found):
        raise UsageError(f"a tap must be one of {', '.join(TAPS)} or a function (pixel, weight), but is {found!r}.")
    return found


def _for_each_image(apply: Callable[[Tensor, Tensor], Tensor], kernel: Kernel, x: Tensor) -> Tensor:
    """Call `apply(weights, image)` for one image after another, since custom taps are not linear.

    Args:
        apply: takes weights `(C_out, C_in, *k)` and an image `(C_in, *size)`.
        kernel: the weights.
        x: shape `(C, *size)` or `(B, C, *size)`.

    Raises:
        ShapeError: the channels do not fit the kernel.
    """
    axis = kernel.channel_axis
    if kernel.is_per_channel:
        kernel.check_channels(x)
        channels = enumerate(x.split(1, axis))
        return torch.cat([_for_each_image(apply, kernel.of_channel(c), image) for c, image in channels], axis)
    images = kernel.split(x)
    batch = images.shape[:axis]
    done = torch.stack([apply(kernel.taps, image) for image in images.reshape(-1, *images.shape[axis:])])
    return kernel.join(done.reshape(*batch, *done.shape[1:]))
