"""`deconv invert`: undo a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands import options
from deconv_cli.commands.batch import Job, Outcome, lay_out, run
from deconv_cli.commands.console import CertificateProgress
from deconv_cli.commands.context import Context, FileOptions, KernelOptions
from deconv_cli.vocabulary import Boundary, DeviceChoice, Method, PaddingLike, Penalty, format_padding, parse_padding

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse

EXAMPLE = "Example: deconv invert sample_images/camera_blurred.png --kernel sample_images/motion.npy -o restored.tif"

PICTURE_LAMBDA = 1e-3
PICTURE_PENALTY = Penalty.GRADIENT
"""For pictures, which are noisy and mostly smooth. A penalty on the pixels themselves would pull what lies outside the
frame to black, and show it as bright lines along the edges."""


class InvertBoundary(StrEnum):
    """The borders that can be undone, or `auto`."""

    AUTO = "auto"
    ZERO = "zero"
    CIRCULAR = "circular"
    REFLECT = "reflect"
    SYMMETRIC = "symmetric"
    REPLICATE = "replicate"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class InversionOptions:
    """How to invert, as typed; `None` where the input decides."""

    padding: PaddingLike | None
    boundary: InvertBoundary
    lam: float | None
    penalty: Penalty | None
    rcond: float | None
    method: Method
    tolerance: float | None
    max_iterations: int
    verbose: bool


def invert(
    inputs: options.InputsArgument,
    kernel: options.KernelOption,
    output: options.OutputOption = None,
    boundary: Annotated[
        InvertBoundary,
        typer.Option(
            "--boundary",
            help="What lay outside. auto: what deconv forward recorded in the file; else unknown for pictures, "
            "zero for tensors.",
        ),
    ] = InvertBoundary.AUTO,
    padding: Annotated[
        str | None,
        typer.Option(
            "--padding",
            metavar="same|valid|full|N|NH,NW",
            help="How far the kernel reached outside. Default: what deconv forward recorded, else same.",
            show_default=False,
        ),
    ] = None,
    lam: Annotated[
        float | None,
        typer.Option(
            "--lambda",
            metavar="λ",
            help="Weight of the penalty, in units of σ²max; 0 for the pseudo-inverse. Default: 1e-3 for pictures, "
            "1e-6 for tensors.",
            show_default=False,
        ),
    ] = None,
    penalty: Annotated[
        Penalty | None,
        typer.Option(
            "--penalty",
            help="What is kept small. Default: gradient for pictures, identity for tensors.",
            show_default=False,
        ),
    ] = None,
    rcond: Annotated[
        float | None,
        typer.Option(
            "--rcond",
            help="Drop singular values up to this fraction of the largest (boundary circular; λ is then 0).",
            show_default=False,
        ),
    ] = None,
    method: Annotated[Method, typer.Option("--method", help="How to solve.")] = Method.AUTO,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Certificate at which an iteration stops. Default: 1e-6 in float32, 1e-10 in float64.",
            show_default=False,
        ),
    ] = None,
    max_iterations: Annotated[int, typer.Option("--max-iterations", help="Iterations at most.", min=1)] = 2000,
    layer: options.LayerOption = None,
    convention: options.ConventionOption = None,
    normalize: options.NormalizeOption = None,
    axes: options.AxesOption = None,
    tensor: options.TensorOption = None,
    series: options.SeriesOption = None,
    output_dtype: options.OutputDTypeOption = None,
    dtype: options.DTypeOption = None,
    device: options.DeviceOption = DeviceChoice.AUTO,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Restore images from what a kernel made of them, and report how far to trust the result."""
    settings = InversionOptions(
        padding=None if padding is None else parse_padding(padding),
        boundary=boundary,
        lam=lam,
        penalty=penalty,
        rcond=rcond,
        method=method,
        tolerance=tolerance,
        max_iterations=max_iterations,
        verbose=verbose and not quiet,
    )
    jobs = lay_out(inputs, output, ending="_restored")
    context = Context.open(
        "invert",
        KernelOptions(kernel, layer, convention, normalize),
        FileOptions(axes, tensor, series, output_dtype, force),
        device,
        dtype,
    )
    restorer = Restorer(context, settings)
    run("invert", jobs, restorer.restore, as_json=as_json, quiet=quiet)


class Restorer:
    """Restores one input after another, and builds the inverse anew only where size or border differ."""

    def __init__(self, context: Context, settings: InversionOptions) -> None:
        self._context = context
        self._settings = settings
        self._built_for: tuple[Any, ...] = ()
        self._inverse: PseudoInverse | None = None

    def restore(self, job: Job) -> Outcome:
        """Read, restore and write one file."""
        from deconv_cli.report.record import describe_reconstruction
        from deconv_cli.workflows.invert import reconstruct

        context, settings = self._context, self._settings
        loaded = context.read(job)
        border = resolve_border(loaded.source, settings, context.kernel_file.sha256)
        penalty = resolve_penalty(loaded.source, settings, context.kernel)
        lam, lambda_reason = resolve_lambda(loaded.source, settings)
        kernel = context.kernel
        n_channels = loaded.values.shape[1] if kernel.shared else kernel.taps.shape[1]
        plan = context.plan(job, loaded, n_channels=n_channels, same_size=context.keeps_size(border.padding))
        with CertificateProgress(settings.tolerance, verbose=settings.verbose).shown() as progress:
            inverse = self._inverse_for(loaded.values, border, lam, penalty)
            result = reconstruct(inverse, loaded.values, bias=context.kernel_file.bias, progress=progress)
        details: dict[str, Any] = {
            "boundary": border.boundary.value,
            "boundary_reason": border.reason,
            **describe_reconstruction(result),
            "lambda_reason": lambda_reason,
            "notes": border.notes,
        }
        typed = {
            "--boundary": border.boundary.value,
            "--padding": format_padding(border.padding),
            "--lambda": repr(lam),
            "--penalty": penalty.value,
            "--rcond": settings.rcond,
            "--method": result.choice.method.value,
            "--tolerance": result.tolerance,
            "--max-iterations": settings.max_iterations,
        }
        record = context.deliver(job, loaded, plan.prepare(result.image.cpu()), details, typed)
        return Outcome(record, is_trusted=result.solution.status.is_success)

    def _inverse_for(self, values: Tensor, border: Border, lam: float, penalty: Penalty) -> PseudoInverse:
        from deconv_cli.solvers.settings import InversionSettings
        from deconv_cli.workflows.invert import inverse_for_output

        wanted = (values.shape[-2:], values.dtype, border.padding, border.boundary, lam, penalty)
        if self._inverse is None or self._built_for != wanted:
            self._inverse = None  # the old one's memory first
            self._inverse = inverse_for_output(
                values,
                self._context.kernel_file.kernel,
                InversionSettings(
                    padding=border.padding,
                    boundary=border.boundary,
                    lam=lam,
                    penalty=penalty,
                    rcond=self._settings.rcond,
                    method=self._settings.method,
                    tolerance=self._settings.tolerance,
                    max_iterations=self._settings.max_iterations,
                ),
            )
            self._built_for = wanted
        return self._inverse


@dataclass(frozen=True)
class Border:
    """What is taken to lie outside the image, and why."""

    boundary: Boundary
    padding: PaddingLike
    reason: str
    notes: list[str]


def resolve_border(source: ImageFile, settings: InversionOptions, kernel_sha256: str) -> Border:
    """Settle the boundary and the padding: as typed, else as recorded in the file, else by the kind of file."""
    recorded = recorded_border(source)
    padding = settings.padding
    if padding is None:
        padding = "same" if recorded is None else recorded.padding
    if settings.boundary is not InvertBoundary.AUTO:
        return Border(Boundary(settings.boundary.value), padding, "asked for", [])
    if recorded is None:
        if source.is_picture:
            return Border(Boundary.UNKNOWN, padding, "a picture shows part of a larger scene", [])
        return Border(Boundary.ZERO, padding, "layers of networks pad their tensors with zeros", [])
    notes = []
    if recorded.kernel_sha256 != kernel_sha256:
        notes.append(
            f"deconv forward made this file with another kernel file, '{recorded.kernel_path}'; "
            "make sure that this one holds the same taps"
        )
    return Border(recorded.boundary, padding, "recorded in the file by deconv forward", notes)


@dataclass(frozen=True)
class RecordedBorder:
    """What `deconv forward` wrote into a file about how it was made."""

    boundary: Boundary
    padding: PaddingLike
    kernel_path: str
    kernel_sha256: str


def recorded_border(source: ImageFile) -> RecordedBorder | None:
    """Read the border from a file's record; `None` if it has none, or if somebody else wrote it."""
    record = source.record
    if record is None or record.get("command") != "forward":
        return None
    try:
        kernel = record["kernel"]
        return RecordedBorder(
            Boundary(record["boundary"]), parse_padding(record["padding"]), str(kernel["path"]), str(kernel["sha256"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def resolve_penalty(source: ImageFile, settings: InversionOptions, kernel: Kernel) -> Penalty:
    """Settle the penalty: as typed, else by the kind of file, as far as the kernel allows it."""
    if settings.penalty is not None:
        return settings.penalty
    n_outputs, n_inputs = kernel.taps.shape[:2]
    return PICTURE_PENALTY if source.is_picture and n_outputs >= n_inputs else Penalty.IDENTITY


def resolve_lambda(source: ImageFile, settings: InversionOptions) -> tuple[float, str]:
    """Settle λ: as typed, else by the kind of file."""
    from deconv_cli.workflows.invert import DEFAULT_LAMBDA

    if settings.lam is not None:
        return settings.lam, "asked for"
    if settings.rcond is not None:
        return 0.0, "rcond truncates instead"
    if source.is_picture:
        return PICTURE_LAMBDA, "default for pictures, whose noise a smaller λ would amplify"
    return DEFAULT_LAMBDA, "default for tensors"
