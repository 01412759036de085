"""The kernel of a run: read from files, or made of formulas."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.option_groups import KernelOptions, OptionValues, given_options
from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import (
    LONG,
    Convention,
    InputKind,
    Size,
    check_padding,
    format_size,
    format_spacing,
)

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile, PreparedOutput
    from deconv_cli.kernels.blind.estimate import KernelEstimate
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.kernels.kernel_field import KernelField
    from deconv_cli.report.run import KernelInput
    from deconv_cli.workflows.pipeline import Pipeline
    from deconv_cli.workflows.resolve_settings import RecordedConvolution

ESTIMATE, MICROSCOPE = Path("estimate"), "microscope"
"""Words for a kernel that each input has itself: to be found in the picture, and computed from its optics."""
_LIKE_A_FORMULA = re.compile(r"[a-z0-9-]+:[0-9.@+-]+(\*.*)?")


@dataclass(frozen=True, eq=False)
class LoadedKernel:
    """A kernel as read.

    Attributes:
        source: the kernel and its origin.
        taps: as stored, floating; or a kernel that varies over the frame.
        bias: added by a layer to each output channel, shape `(C_out,)`.
        notes: notes of the reader, a sentence each.
        options: the options that would read the same again.
        picture_notes: further notes if the input is a picture.
        refusal: the reason not to restore a picture with it.
        recorded: the convolution of the kernel, as its file records it.
        is_ambiguous: whether three axes may be one kernel for each channel or one kernel of three dimensions.
        spacing: distances of neighboring taps along the axes of space, in micrometers.
        pipelines: those that restore pictures and tensors with it, made with the first of each.
    """

    source: KernelInput
    taps: Tensor | KernelField
    bias: Tensor | None
    notes: tuple[str, ...]
    options: OptionValues
    picture_notes: tuple[str, ...] = ()
    refusal: str | None = None
    recorded: RecordedConvolution | None = None
    is_ambiguous: bool = False
    spacing: tuple[float, ...] | None = None
    pipelines: dict[InputKind | None, Pipeline] = field(default_factory=dict)

    @classmethod
    def computed(
        cls,
        text: str,
        taps: Tensor,
        notes: Sequence[str] = (),
        *,
        dimensions: int | None = None,
        spacing: tuple[float, ...] | None = None,
        estimate: KernelEstimate | None = None,
    ) -> LoadedKernel:
        """Describe taps that a text stands for, such as a formula; `dimensions` were typed or found in the input."""
        from deconv_cli.kernels.kernel import Kernel
        from deconv_cli.report.run import KernelInput

        kernel = Kernel.of_any(taps, dimensions=dimensions or taps.ndim)
        source = KernelInput(kernel, text, Convention.CORRELATION, None, None, has_bias=False, estimate=estimate)
        options: OptionValues = {"--kernel": text, "--dimensions": dimensions}
        return cls(source, taps, None, tuple(notes), options, spacing=spacing)

    @property
    def kernel(self) -> Kernel:
        """The canonical kernel."""
        return self.source.kernel

    def is_kernel_of(self, image: ImageFile) -> bool:
        """Return whether `deconv forward` made an image with this kernel, read in the same way."""
        made_by = (image.record or {}).get("kernel")
        return isinstance(made_by, dict) and made_by.get("sha256") == self.source.sha256 is not None

    def refuse_for(self, image: ImageFile, size: Size) -> None:
        """Refuse a kernel that can only spoil a picture of `size` samples along the axes of space.

        Raises:
            UsageError: the kernel has a flaw.
            ShapeError: the kernel is far larger than the picture.
        """
        if not image.is_picture:
            return
        if self.refusal is not None and not self.is_kernel_of(image):
            raise UsageError(self.refusal)
        seen = size[-self.kernel.n_axes :]
        if any(k > max(2 * n, LONG) for k, n in zip(self.kernel.size, seen, strict=True)):
            raise ShapeError(
                f"the kernel of {format_size(self.kernel.size)} taps is more than twice as large as the picture of "
                f"{format_size(seen)}; give a smaller one, or a larger picture."
            )

    def arrange(self, image: ImageFile) -> ImageFile:
        """Put the axes of an image that the kernel spans last."""
        given = self.options.get("--dimensions")
        return image.spanned_by(self.kernel.n_axes, given if isinstance(given, int) else None)

    def notes_on(self, image: ImageFile, prepared: PreparedOutput, *more: str) -> tuple[str, ...]:
        """Collect the notes on kernel, input, arithmetic and output, in this order."""
        of_picture = self.picture_notes if image.is_picture and not self.is_kernel_of(image) else ()
        spacing = _spacing_notes(self.spacing, image.spacing)
        return (*self.notes, *of_picture, *spacing, *image.notes, *more, *prepared.notes)


def _spacing_notes(taps: tuple[float, ...] | None, samples: tuple[float, ...] | None) -> tuple[str, ...]:
    """Note that the taps of a kernel have another distance than the samples of the image."""
    from deconv_cli.workflows.resolve_settings import SAME_SPACING

    if taps is None or samples is None or len(taps) != len(samples):
        return ()
    if all(abs(a / b - 1) <= SAME_SPACING for a, b in zip(taps, samples, strict=True)):
        return ()
    return (
        f"the taps of the kernel lie {format_spacing(taps)} apart, but the samples of the image "
        f"{format_spacing(samples)}; each tap was applied to one sample; give a kernel with the spacing of the image, "
        "or correct the spacing in one of the two files",
    )


def load_kernels(
    paths: list[Path], options: KernelOptions, dimensions: int | None = None, named: int | None = None
) -> LoadedKernel:
    """Read a kernel for all channels, or one for each from as many files or formulas.

    If no `dimensions` were typed, the `named` axes of space of the image decide how a tensor of three axes is read, and
    a formula makes a kernel with one axis for a signal.

    Raises:
        UsageError: no such file or formula, or an option on files for a formula.
        ShapeError: one of several kernels has channels itself.
    """
    of_signals = 1 if named == 1 and any(map(is_formula, paths)) else None
    loaded = [load_kernel(path, options, dimensions or of_signals) for path in paths]
    if dimensions is None and any(one.kernel.n_axes == 1 for one in loaded):  # then the formulas are of signals too
        loaded = [load_kernel(p, options, 1) if is_formula(p) else one for p, one in zip(paths, loaded, strict=True)]
    if named in (1, 3) and any(one.is_ambiguous for one in loaded):
        found = load_kernels(paths, options, named)
        axes, size = ", ".join("ZYX"[-found.kernel.n_axes :]), format_size(found.source.shape)
        how = "dimensions=2 reads it as a kernel of planes for each channel"
        note = f"the kernel of shape {size} spans the axes {axes} of the image; {how}"
        return replace(found, notes=(*found.notes, note))
    return loaded[0] if len(loaded) == 1 else _one_for_each_channel(paths, loaded, options)


def _one_for_each_channel(paths: list[Path], loaded: list[LoadedKernel], options: KernelOptions) -> LoadedKernel:
    import hashlib

    from deconv_cli.kernels.kernel import Kernel, stack_kernels

    each = list(zip(paths, loaded, strict=True))
    for path, one in each:
        if len(one.source.shape) != loaded[0].kernel.n_axes or not one.kernel.shared:
            raise ShapeError(
                f"several kernels must each be for one channel and have {loaded[0].kernel.n_axes} axes like the "
                f"first, but '{path}' has shape {one.source.shape}; give it alone."
            )
    taps = stack_kernels([one.source.kernel.taps[0, 0] for one in loaded])
    sha256 = [one.source.sha256 or str(path) for path, one in each]
    source = replace(
        loaded[0].source,
        kernel=Kernel.of_any(taps, dimensions=loaded[0].kernel.n_axes),
        path=", ".join(map(str, paths)),
        sha256=hashlib.sha256(" ".join(sha256).encode()).hexdigest(),
    )
    return replace(
        loaded[0],
        source=source,
        taps=taps,
        bias=None,
        notes=tuple(f"{path}: {note}" for path, one in each for note in one.notes),
        options={**loaded[0].options, "--kernel": paths, **given_options(options)},
        picture_notes=tuple(f"{path}: {note}" for path, one in each for note in one.picture_notes),
        refusal=next((one.refusal for one in loaded if one.refusal), None),
        recorded=None,
        is_ambiguous=False,
    )


def load_kernel(path: Path, options: KernelOptions, dimensions: int | None = None) -> LoadedKernel:
    """Read a kernel from its file, or make it of a formula such as `disk:5.2` if no file has that name.

    Raises:
        UsageError: no such file or formula, or an option on files for a formula.
    """
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.models.kernel_files import read_kernel
    from deconv_cli.report.run import KernelInput
    from deconv_cli.saved_files import field_of

    if path == ESTIMATE and not path.exists():
        raise UsageError(
            "--kernel estimate works only with deconv invert; here give a formula or a file, such as one from deconv "
            "kernel estimate PHOTO -o FILE."
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
    found: OptionValues = {"--layer": read.layer, "--convention": read.convention}
    # What was found comes first and counts, so that a rerun has the same line.
    again: OptionValues = {"--kernel": path, "--dimensions": dimensions, **found, **given_options(options)} | found
    return LoadedKernel(
        source,
        taps,
        read.bias,
        read.notes,
        again,
        read.picture_notes,
        read.refusal,
        recorded_by_model(read.geometry) if read.geometry else None,
        is_ambiguous=read.is_ambiguous,
        spacing=read.spacing,
    )


def recorded_by_model(geometry: dict[str, Any]) -> RecordedConvolution:
    """Read stride, padding and the rest from the record of a layer in a model file."""
    from deconv_cli.workflows.resolve_settings import RecordedConvolution

    names = {field.name for field in fields(LayerOptions)}
    options: dict[str, Any] = {name: _as_options(value) for name, value in geometry.items() if name in names}
    mode, padding = str(geometry.get("padding_mode", "zeros")), check_padding(geometry.get("padding", 0))
    boundary = "zero" if mode == "zeros" else mode
    return RecordedConvolution(
        boundary, padding, None, LayerOptions(**options), reason="that of the layer in the model file"
    )


def _as_options(value: object) -> object:
    """Write equal numbers for each axis as one number, as they would be typed."""
    if not isinstance(value, list):
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)


def is_formula(path: Path) -> bool:
    """Return whether a kernel is given as a formula, perhaps misspelled or without its numbers, and not as a file."""
    is_meant = str(path).partition(":")[0] in KERNEL_SOURCES
    return (is_meant or _LIKE_A_FORMULA.fullmatch(str(path)) is not None) and not path.exists()


def _make_kernel(text: str, options: KernelOptions, dimensions: int | None) -> LoadedKernel:
    from deconv_cli.kernels.sources.formula import make_kernel

    if given := list(given_options(options)):
        raise UsageError(f"{given[0]} is for kernels in files, but '{text}' is a formula; leave it out.")
    taps = make_kernel(text, dimensions=dimensions)
    if dimensions is not None and dimensions < taps.ndim:
        raise UsageError(
            f"the kernel {text} spans {taps.ndim} axes, but the images have {dimensions}; give a file of taps with "
            f"{dimensions}, or leave --dimensions out."
        )
    found = LoadedKernel.computed(text, taps)
    return replace(found, options={"--kernel": text, "--dimensions": dimensions})
