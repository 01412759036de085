"""What every command that turns files into files does alike: read, plan, describe, write."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.option_groups import FileOptions, KernelOptions
from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import Convention, DeviceChoice, PaddingLike, check_padding, format_spacing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deconv_cli.commands.batch import Job
    from deconv_cli.io import ImageFile, OutputPlan, PreparedOutput
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.kernels.kernel_field import KernelField
    from deconv_cli.report.run import Environment, FactorInput, InputFile, KernelInput, OutputFile
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse
    from deconv_cli.workflows.resolution import RecordedConvolution

ESTIMATE = Path("estimate")
"""What is typed for a kernel that is to be found in the picture."""
_LIKE_A_FORMULA = re.compile(r"[a-z-]+:[0-9.@+-]+")

SAME_SPACING = 0.01
"""Distances of taps and of samples are the same up to this share."""

OptionValues = dict[str, object]
"""Options as they would be typed; `None` and `False` are left out, `True` is a bare flag, a list several."""


@dataclass(frozen=True, eq=False)
class LoadedKernel:
    """A kernel as read, by itself or as a part of a precomputed inverse.

    Attributes:
        source: the kernel and where it came from.
        taps: as stored, floating; or a kernel that varies over the frame.
        bias: what a layer adds to each output channel, shape `(C_out,)`.
        notes: what was done on reading, a sentence each.
        picture_notes: what to know besides, if the input is a picture.
        options: the options that would read the same again.
        recorded: what the file says of the convolution that the kernel belongs to; `None` where it says nothing.
        inverse: what was built before; `None` for a kernel by itself.
        factor: the file of that inverse.
        is_ambiguous: nothing tells whether three axes are one kernel for each channel.
        spacing: distances of neighboring taps along the axes of space, in micrometers, where they are known.
    """

    source: KernelInput
    taps: Tensor | KernelField
    bias: Tensor | None
    notes: tuple[str, ...]
    options: OptionValues
    picture_notes: tuple[str, ...] = ()
    recorded: RecordedConvolution | None = None
    inverse: PseudoInverse | None = None
    factor: FactorInput | None = None
    is_ambiguous: bool = False
    spacing: tuple[float, ...] | None = None

    @property
    def kernel(self) -> Kernel:
        """The canonical kernel."""
        return self.source.kernel


def load_kernels(
    paths: list[Path],
    options: KernelOptions,
    dimensions: int | None = None,
    read_image: Callable[[], ImageFile] | None = None,
) -> LoadedKernel:
    """Read a kernel for all channels, or one for each from as many files or formulas.

    Args:
        paths: files or formulas.
        options: how to read them.
        dimensions: axes of space of the images, where that was given.
        read_image: reads the first image, whose axes tell what a tensor of three axes is where that was not.

    Raises:
        UsageError: no such file or formula, or an option on files for a formula.
        ShapeError: one of several kernels has channels itself.
    """
    loaded = [load_kernel(path, options, dimensions) for path in paths]
    if read_image is not None and any(one.is_ambiguous for one in loaded):
        named = read_image().named_dimensions
        if named in (1, 3):
            found = load_kernels(paths, options, named)
            return replace(found, notes=(*found.notes, *_dimensions_notes(found)))
    return loaded[0] if len(loaded) == 1 else _one_for_each_channel(paths, loaded, options)


def _dimensions_notes(loaded: LoadedKernel) -> tuple[str, ...]:
    """Say how a tensor was taken, and how else it can be."""
    from deconv_cli.operators.axes import format_size

    n_axes, size = loaded.kernel.n_axes, format_size(loaded.source.shape)
    what = f"spans the axes {SPACE_NAMES[n_axes]} of the image"
    return (f"the kernel of shape {size} {what}; dimensions=2 takes it for a kernel of planes for each channel",)


SPACE_NAMES = {1: "X", 2: "Y and X", 3: "Z, Y and X"}
"""What a kernel of so many axes spans."""


def _one_for_each_channel(paths: list[Path], loaded: list[LoadedKernel], options: KernelOptions) -> LoadedKernel:
    import hashlib

    from deconv_cli.kernels.kernel import Kernel, stack_kernels

    for path, one in zip(paths, loaded, strict=True):
        if len(one.source.shape) != loaded[0].kernel.n_axes or not one.kernel.shared:
            raise ShapeError(
                f"of several kernels each is that of one channel, of {loaded[0].kernel.n_axes} axes as the first, but "
                f"'{path}' has shape {one.source.shape}; give it alone."
            )
    taps = stack_kernels([one.source.kernel.taps[0, 0] for one in loaded])
    sha256 = [one.source.sha256 or str(path) for path, one in zip(paths, loaded, strict=True)]
    source = replace(
        loaded[0].source,
        kernel=Kernel.of_any(taps, dimensions=loaded[0].kernel.n_axes),
        path=", ".join(map(str, paths)),
        sha256=hashlib.sha256(" ".join(sha256).encode()).hexdigest(),
    )
    return LoadedKernel(
        source=source,
        taps=taps,
        bias=None,
        notes=tuple(f"{path}: {note}" for path, one in zip(paths, loaded, strict=True) for note in one.notes),
        picture_notes=tuple(
            f"{path}: {note}" for path, one in zip(paths, loaded, strict=True) for note in one.picture_notes
        ),
        options={**loaded[0].options, "--kernel": paths, **options.as_options()},
        spacing=loaded[0].spacing,
    )


def load_kernel(path: Path, options: KernelOptions, dimensions: int | None = None) -> LoadedKernel:
    """Read a kernel from its file, or make it of a formula such as `disk:5.2` where no file has that name.

    Args:
        path: the file, or the formula.
        options: how to read it.
        dimensions: axes of space of the images, where that is known.

    Raises:
        UsageError: no such file or formula, or an option on files for a formula.
    """
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.models.kernel_files import read_kernel
    from deconv_cli.report.run import KernelInput
    from deconv_cli.saved_fields import field_of

    if path == ESTIMATE and not path.exists():
        raise UsageError(
            "--kernel estimate finds the kernel of a picture that deconv invert is to restore; here give a file or a "
            "formula, such as what deconv kernel estimate PHOTO -o FILE writes."
        )
    if is_formula(path):
        return _make_kernel(str(path), options, dimensions)
    read = read_kernel(
        path,
        layer=options.layer,
        bias=options.bias,
        convention=options.convention,
        normalize=options.normalize,
        clean=options.clean_kernel,
        dimensions=dimensions,
    )
    taps = read.kernel if read.places is None else field_of(read)
    source = KernelInput(
        kernel=Kernel.of_any(taps, dimensions=read.dimensions),
        path=str(path),
        convention=read.convention,
        sha256=read.sha256,
        layer=read.layer,
        has_bias=read.bias is not None,
    )
    again: OptionValues = {"--kernel": path, "--dimensions": dimensions, **options.as_options()}
    again |= {"--layer": read.layer, "--convention": read.convention}
    return LoadedKernel(
        source,
        taps,
        read.bias,
        read.notes,
        again,
        read.picture_notes,
        _recorded(read.geometry) if read.geometry else None,
        is_ambiguous=read.is_ambiguous,
        spacing=read.spacing,
    )


def _recorded(geometry: dict[str, Any]) -> RecordedConvolution:
    """Take stride, padding and the rest from what a model file says of a layer."""
    from deconv_cli.workflows.resolution import RecordedConvolution

    names = {field.name for field in fields(LayerOptions)}
    options: dict[str, Any] = {name: _as_options(value) for name, value in geometry.items() if name in names}
    mode, padding = str(geometry.get("padding_mode", "zeros")), check_padding(geometry.get("padding", 0))
    boundary = "zero" if mode == "zeros" else mode
    return RecordedConvolution(boundary, padding, None, LayerOptions(**options), "that of the layer in the model file")


def _as_options(value: object) -> object:
    """Write numbers for each axis as one where they are equal, as they would be typed."""
    if not isinstance(value, list):
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)


def is_formula(path: Path) -> bool:
    """Tell whether what was given for a kernel is a formula, maybe misspelt, and no file."""
    name, colon, _ = str(path).partition(":")
    is_meant = name in KERNEL_SOURCES if colon else False
    return (is_meant or _LIKE_A_FORMULA.fullmatch(str(path)) is not None) and not path.exists()


def _make_kernel(text: str, options: KernelOptions, dimensions: int | None) -> LoadedKernel:
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.kernels.sources.kernel_source import make_kernel
    from deconv_cli.report.run import KernelInput

    given = [name for name, value in options.as_options().items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} is for kernels in files, but '{text}' is a formula; leave it out.")
    taps = make_kernel(text)
    if dimensions is not None and dimensions < taps.ndim:
        raise UsageError(f"the kernel {text} spans {taps.ndim} axes, but the images have {dimensions}; take another.")
    kernel = Kernel.from_tensor(taps, dimensions=taps.ndim)
    source = KernelInput(kernel, text, Convention.CORRELATION, None, None, has_bias=False)
    return LoadedKernel(source, taps, None, (), {"--kernel": text})


def load_factor(path: Path, device: torch.device, max_memory: int | None) -> LoadedKernel:
    """Read a precomputed inverse, whose kernel takes the place of a kernel's file."""
    from deconv_cli.io import fingerprint
    from deconv_cli.report.run import FactorInput, KernelInput
    from deconv_cli.saved_inverses import KernelOrigin, read_inverse

    saved = read_inverse(path, device, max_memory)
    # Saved from Python, it knows of no file, and so of no fingerprint.
    origin = saved.origin or KernelOrigin(str(path), None, Convention.CORRELATION, "", ())
    source = KernelInput(
        kernel=saved.inverse.kernel,
        path=origin.path,
        convention=origin.convention,
        sha256=origin.sha256 or None,
        layer=origin.layer,
        has_bias=saved.bias is not None,
    )
    factor = FactorInput(str(path), fingerprint(path))
    taps = saved.inverse.kernel.taps
    again: OptionValues = {"--factor": path}
    return LoadedKernel(source, taps, saved.bias, origin.notes, again, inverse=saved.inverse, factor=factor)


@dataclass(frozen=True, eq=False)
class LoadedInput:
    """An input as read.

    Attributes:
        image: the file.
        values: its samples on the device of the arithmetic, shape `(B, C, *size)` with the axes that the kernel spans.
        started: when reading began, in seconds of the performance counter.
    """

    image: ImageFile
    values: Tensor
    started: float

    def describe(self, path: Path) -> InputFile:
        """Describe the file."""
        from deconv_cli.report.run import InputFile

        image = self.image
        return InputFile(str(path), image.shape, image.axes, image.dtype, image.sha256, image.is_picture, image.spacing)


@dataclass(frozen=True, eq=False)
class Context:
    """The kernel, the device, and the options on files that all inputs of a run share."""

    command: str
    loaded: LoadedKernel
    files: FileOptions
    device: torch.device

    def read(self, job: Job, image: ImageFile | None = None) -> LoadedInput:
        """Read the input of a job, or take it as it was read before, with the axes that the kernel spans."""
        started = time.perf_counter()
        if image is None:
            image = self.files.read(job.source)
        image = image.spanned_by(self.loaded.kernel.n_axes)
        return LoadedInput(image, image.values.to(self.device), started)

    def keeps_size(self, padding: PaddingLike, layer: LayerOptions = PLAIN) -> bool:
        """Tell whether image and output have the same size."""
        if not layer.is_plain:
            return False
        from deconv_cli.operators.geometry import resolve_padding

        size = self.loaded.kernel.size
        return resolve_padding(padding, size).total == tuple(n - 1 for n in size)

    def plan(self, job: Job, loaded: LoadedInput, *, n_channels: int, same_size: bool) -> OutputPlan:
        """Make sure that the output can be written, before anything is computed."""
        from deconv_cli.io import plan_output

        return plan_output(
            job.target,
            loaded.image,
            n_channels=n_channels,
            output_dtype=self.files.output_dtype,
            force=self.files.force,
            same_size=same_size,
            make_folder=job.make_folder,
        )

    def notes(self, loaded: LoadedInput, prepared: PreparedOutput, *more: str) -> tuple[str, ...]:
        """Gather what was done on the way, in order."""
        of_picture = self.loaded.picture_notes if loaded.image.is_picture else ()
        made_by = (loaded.image.record or {}).get("kernel")
        if isinstance(made_by, dict) and made_by.get("sha256") == self.loaded.source.sha256 is not None:
            of_picture = ()  # deconv forward read the same kernel the same way
        doubts = _spacing_notes(self.loaded.spacing, loaded.image.spacing)
        return (*self.loaded.notes, *of_picture, *doubts, *loaded.image.notes, *more, *prepared.notes)

    def rerun(self, job: Job, prepared: PreparedOutput, options: OptionValues) -> str:
        """Write the command line that gives the same samples again.

        Args:
            job: what was done.
            prepared: what is written.
            options: those that are particular to the command.
        """
        values: OptionValues = {
            **self.loaded.options,
            **self.files.as_options(),
            **options,
            "--device": self.device.type,
            "--output-dtype": prepared.dtype,
            "--output": job.target,
            "--force": True,
        }
        return command_line(self.command, job.source, values)


def _spacing_notes(taps: tuple[float, ...] | None, samples: tuple[float, ...] | None) -> tuple[str, ...]:
    """Say so where a kernel was taken at other distances than the image has."""
    if taps is None or samples is None or len(taps) != len(samples):
        return ()
    if all(abs(a / b - 1) <= SAME_SPACING for a, b in zip(taps, samples, strict=True)):
        return ()
    return (
        f"the taps of the kernel lie {format_spacing(taps)} apart, but the samples of the image "
        f"{format_spacing(samples)}; each tap was taken for one sample, so give a kernel of the image's distances, or "
        "correct what one of the two files says",
    )


def describe_output(path: Path, prepared: PreparedOutput) -> OutputFile:
    """Describe what is written."""
    from deconv_cli.report.run import OutputFile

    return OutputFile(str(path), tuple(prepared.shape), prepared.dtype, prepared.samples_sha256)


def environment_of(device: torch.device, dtype: torch.dtype, started: float) -> Environment:
    """Describe what a result was computed with, up to now."""
    from deconv_cli.allocator import peak_memory_bytes
    from deconv_cli.report.run import Environment

    name = str(dtype).removeprefix("torch.")
    return Environment(str(device), name, peak_memory_bytes(), time.perf_counter() - started)


def command_line(command: str, source: Path | None, values: OptionValues) -> str:
    """Write a command as a shell would read it."""
    words = ["deconv", command]
    for option, value in values.items():
        if value is None or value is False:
            continue
        # One word, so that a value that begins with a dash is not taken for an option.
        for one in value if isinstance(value, list) else [value]:
            words.append(option if one is True else f"{option}={one}")
    return shlex.join(words if source is None else [*words, "--", str(source)])


def pick(device: DeviceChoice) -> torch.device:
    """Find the device that was chosen."""
    from deconv_cli.workflows.arithmetic import pick_device

    return pick_device(device)
