"""A finished run of a command, typed: what the table, the JSON record and the page are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from deconv_cli.diagnostics.well_posedness import WellPosedness
from deconv_cli.kernels.blind.estimate import KernelEstimate
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.vocabulary import Convention, PaddingLike, Size
from deconv_cli.workflows.diagnose import Diagnosis
from deconv_cli.workflows.lambda_series import LambdaView
from deconv_cli.workflows.light import ChosenLight
from deconv_cli.workflows.reconstruction import Reconstruction


@dataclass(frozen=True)
class InputFile:
    """An input as read: its path, the shape, axes and sample type as stored, and the SHA-256 of all its bytes.

    `spacing` holds the distances of neighboring samples along the axes of space, in micrometers, where they are known.
    """

    path: str
    shape: tuple[int, ...]
    axes: str
    dtype: str
    sha256: str
    is_picture: bool
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class KernelInput:
    """A kernel, and where it came from: the path of its file with its SHA-256, or the words that made it.

    `has_bias` says whether a bias of the layer was subtracted from, or added to, the outputs; `estimate` is how it was
    found in the blurred picture.
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
        """Shape of the taps, without an axis of channels that the kernel does not mix."""
        taps = self.kernel.all_taps
        if self.kernel.field is not None:
            return tuple(taps.shape)
        if self.kernel.is_per_channel:
            return (taps.shape[0], *taps.shape[2:])
        return tuple(taps.shape[2:] if self.kernel.shared else taps.shape)


@dataclass(frozen=True)
class FactorInput:
    """The file of a precomputed inverse."""

    path: str
    sha256: str


@dataclass(frozen=True)
class OutputFile:
    """An output as written: its path, shape, axes and sample type, and the SHA-256 of its samples."""

    path: str
    shape: tuple[int, ...]
    axes: str
    dtype: str
    samples_sha256: str


@dataclass(frozen=True)
class Environment:
    """What a result was computed with: device, precision, peak memory in bytes, and time in seconds."""

    device: str
    dtype: str
    peak_memory_bytes: int
    time_s: float


@dataclass(frozen=True, eq=False)
class Run:
    """What all commands that take a kernel have in common; `rerun` is the command line that makes the same again."""

    kernel: KernelInput
    notes: tuple[str, ...]
    environment: Environment
    rerun: str


@dataclass(frozen=True, eq=False)
class ImageRun(Run):
    """What commands that turn images into images have in common."""

    command: str
    source: InputFile
    output: OutputFile


@dataclass(frozen=True, eq=False)
class ForwardRun(ImageRun):
    """A finished run of `deconv forward`, in what it acted, and with the noise that was added; `None` for none.

    `tap` is what was summed in the place of products, as it was typed; `None` for products. `layer` is the stride, the
    dilation and the rest; `input_size` are the pixels of the image along each axis of space.
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
    """A finished run of `deconv invert`, with the file of an inverse that was given.

    For a page there are a diagnosis, and a detail under other λ.
    """

    reconstruction: Reconstruction
    diagnosis: Diagnosis | None
    factor: FactorInput | None
    lambda_views: tuple[LambdaView, ...] = ()


@dataclass(frozen=True, eq=False)
class FactorRun(Run):
    """A finished run of `deconv factor`: what was built, in how many seconds, and its file with size and SHA-256."""

    inverse: PseudoInverse
    well_posedness: WellPosedness | None
    factoring_time_s: float
    path: str
    n_bytes: int
    sha256: str

    @property
    def factors(self) -> Mapping[str, Tensor]:
        """What the method computed once, by name; empty where that costs nothing."""
        return self.inverse.state.factors.tensors

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, with one where there is nothing to keep."""
        return self.notes if self.factors else (*self.notes, _BUILT_AGAIN)


_BUILT_AGAIN = "this method has nothing that is costly to keep: deconv invert builds it again from the taps"
