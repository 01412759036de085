"""Finished runs of commands, from which table, JSON record and page are made."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.kernels.blind.estimate import KernelEstimate
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.vocabulary import Convention, PaddingLike, Size
from deconv_cli.workflows.lambda_series import LambdaView
from deconv_cli.workflows.light import ChosenLight
from deconv_cli.workflows.measurement import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction


@dataclass(frozen=True)
class InputFile:
    """An input as stored, with the SHA-256 of its bytes, and the spacing of its samples in micrometers, if known."""

    path: str
    shape: tuple[int, ...]
    axes: str
    dtype: str
    sha256: str
    is_picture: bool
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class KernelInput:
    """A kernel with the path of its file and the SHA-256, or the words that made it.

    `has_bias` says whether the bias of the layer was used; `estimate` is the result if the kernel was estimated.
    """

    kernel: Kernel
    path: str
    convention: Convention
    sha256: str | None
    layer: str | None
    has_bias: bool
    estimate: KernelEstimate | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the taps, without channel axes if the kernel does not mix channels."""
        taps = self.kernel.all_taps
        if self.kernel.field is not None:
            return tuple(taps.shape)
        if self.kernel.is_per_channel:
            return (taps.shape[0], *taps.shape[2:])
        return tuple(taps.shape[2:] if self.kernel.shared else taps.shape)


@dataclass(frozen=True)
class OutputFile:
    """An output as written, with the SHA-256 of its samples."""

    path: str
    shape: tuple[int, ...]
    axes: str
    dtype: str
    samples_sha256: str


@dataclass(frozen=True)
class Environment:
    """Device, precision, peak memory in bytes, and time in seconds of a run."""

    device: str
    dtype: str
    peak_memory_bytes: int
    time_s: float


@dataclass(frozen=True, eq=False)
class Run:
    """A run with a kernel; `rerun` is the command line that repeats it."""

    kernel: KernelInput
    notes: tuple[str, ...]
    environment: Environment
    rerun: str


@dataclass(frozen=True, eq=False)
class ImageRun(Run):
    """A run that turns images into images."""

    command: str
    source: InputFile
    output: OutputFile


@dataclass(frozen=True, eq=False)
class ForwardRun(ImageRun):
    """A finished run of `deconv forward`.

    `noise` is the noise that was added, and `tap` the expression that replaced products, as they were typed.
    """

    padding: PaddingLike
    boundary: str
    input_size: Size
    light: ChosenLight
    noise: str | None
    seed: int | None
    tap: str | None = None
    layer: LayerOptions = PLAIN


@dataclass(frozen=True, eq=False)
class InvertRun(ImageRun):
    """A finished run of `deconv invert`; the diagnosis, and a detail under other λ, are for a page."""

    reconstruction: Reconstruction
    diagnosis: Diagnosis | None
    lambda_views: tuple[LambdaView, ...] = ()
