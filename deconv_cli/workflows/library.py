"""The entry points of the library to the pipeline: undo a convolution, or build its inverse once for many outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators.linear_operator import check_tensor
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.arithmetic import as_size, check_kernel, check_single_kernel, pick_dtype
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolve_settings import NO_METADATA, InputMetadata, RecordedConvolution


def invert(
    y: Tensor,
    kernel: Tensor | KernelField,
    *,
    settings: ReconstructionSettings | None = None,
    bias: Tensor | None = None,
    truth: Tensor | None = None,
    recorded: RecordedConvolution | None = None,
    tone_curve: ToneCurve | None = None,
    metadata: InputMetadata = NO_METADATA,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,  # noqa: ANN401
) -> Reconstruction:
    """Estimate the images x that a convolution turned into `y`: min ‖Ax − y‖² + λσ²max‖Lx‖², or under another prior.

    Args:
        y: shape `(C_out, *output_size)` or `(B, C_out, *output_size)`, with one, two or three axes of space.
        kernel: the taps that made `y`, or a `KernelField`, as for `forward`.
        settings: how to undo it; or give its fields one by one.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        truth: the true images, of the shape of the estimate, for its real error; the error is also predicted if the
            settings allow it.
        recorded: boundary, padding and light of the convolution that made `y`, for settings that leave them open.
        tone_curve: how `y` encodes light, and the truth and the estimate too; undone as `light` says.
        metadata: what else is known of the input: the record and the sample type of its file, the spacing of its
            samples, the divisors of a JPEG.
        progress: called after every iteration with its number and the certificate.
        options: fields of `ReconstructionSettings`, which explains them: `padding`, `boundary`, `lam`, `penalty`, ...

    Raises:
        ShapeError: kernel, bias, truth and data do not fit one another.
        UsageError: settings that are unknown or contradict one another.
        TooLargeError: the inverse does not fit the memory.
        MalformedInputError: data or kernels that are not finite.
    """
    if settings is not None and options:
        raise UsageError(f"settings were given both as a record and as {next(iter(options))}; use one or the other.")
    if settings is None:
        settings = ReconstructionSettings.of(**options)
    if truth is not None and settings.predicts:
        settings = replace(settings, predict=True)
    tensors = [part for part in (y, kernel, bias) if isinstance(part, Tensor)]
    if settings.leaves_prior_open and any(part.requires_grad for part in tensors):
        settings = replace(settings, prior="quadratic")  # the other priors have no derivative
    check_tensor(y, "the output to invert")
    check_kernel(kernel)
    pipeline = Pipeline(kernel, settings, bias=bias)
    metadata = replace(metadata, recorded=recorded or metadata.recorded, tone_curve=tone_curve or metadata.tone_curve)
    return pipeline.reconstruct(y, pipeline.resolve(metadata), truth=truth, progress=progress)


def pseudo_inverse(kernel: Tensor, *, input_size: Size, **options: Any) -> PseudoInverse:  # noqa: ANN401
    """Build the inverse of a convolution once, and apply it to many outputs.

    Args:
        kernel: the taps, as for `forward`; the arithmetic runs on their device.
        input_size: size of the images x, one number for each axis of space.
        options: fields of `ResolvedSettings`, which explains them: `dimensions` (by default what the kernel's axes
            tell), `padding` (`same`), `stride`, `dilation`, `groups`, `transposed` and `output_padding` (those of a
            plain convolution), `boundary` (`zero`), `lam` (0, the Moore–Penrose inverse), `penalty`
            (`identity`), `method`, `tolerance`, `max_iterations`, `max_memory` and `dtype`.

    Raises:
        ShapeError: the kernel does not fit the size.
        UsageError: settings that are unknown or contradict one another.
        TooLargeError: the inverse does not fit the memory.
        MalformedInputError: a kernel that is complex or not finite.
    """
    settings = ResolvedSettings.of(**options)
    check_single_kernel(kernel)
    dtype = pick_dtype(settings.dtype, kernel, kernel.device)
    canonical = Kernel.from_tensor(kernel, dtype, dimensions=settings.dimensions).with_layer(settings.layer)
    n_axes = canonical.n_axes
    if settings.dimensions not in (None, n_axes):
        raise UsageError(
            f"a kernel of shape {tuple(kernel.shape)} spans only {n_axes} of {settings.dimensions} axes; build the "
            f"inverse for one plane, with dimensions={n_axes}, and apply it to the planes as a batch."
        )
    return PseudoInverse(canonical, as_size(input_size, n_axes), settings)
