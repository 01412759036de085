"""`deconv inspect`: what images, tensors and kernels are."""

from __future__ import annotations

import math
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.cli_messages import with_options
from deconv_cli.commands.console import print_document, print_error
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.commands.inspection_table import print_inspection
from deconv_cli.commands.option_groups import JsonOption, KernelReading, ShowOption
from deconv_cli.errors import DeconvError, ShapeError, UnsafeInputError, UsageError
from deconv_cli.vocabulary import PaddingLike, Size, format_padding, parse_padding, parse_size

if TYPE_CHECKING:
    from deconv_cli.io.file_inspection import Entry, Inspected
    from deconv_cli.io.tensors import TensorCodec, TensorFile
    from deconv_cli.models.kernel_files import KernelFile

EXAMPLE = "Example: deconv inspect sample_images/layer.safetensors --size 32,32"


IMAGE_SIZES = {1: (1024,), 2: (128, 128), 3: (32, 64, 64)}
"""Of the images that a kernel of so many axes is judged for."""


class Kind(StrEnum):
    """What a file is taken for."""

    IMAGE = "image"
    KERNEL = "kernel"


def inspect(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Pictures, tensors, kernels, state dicts.", show_default=False),
    ],
    reading: KernelReading,
    taken_for: Annotated[
        Kind | None,
        typer.Option(
            "--as",
            help="Take the files for images or kernels. Default: bare tensors of four axes and weights of layers are "
            "kernels, all others images.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="[D,]H,W",
            help="Size of the images that a kernel is judged for; as many numbers as the kernel spans axes. Default: "
            "128,128, and 32,64,64 for stacks.",
            show_default=False,
        ),
    ] = None,
    padding: Annotated[
        str, typer.Option("--padding", metavar="same|valid|full|N|NH,NW", help="How far the kernel reaches outside.")
    ] = "same",
    tensor: Annotated[
        str | None,
        typer.Option(
            "--tensor", metavar="NAME", help="Which tensor or layer of a file that holds several. Default: all of them."
        ),
    ] = None,
    series: Annotated[
        int | None,
        typer.Option("--series", metavar="N", help="Which image series of a TIFF or OME-Zarr.", min=0),
    ] = None,
    show: ShowOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what files hold: shape, range, metadata; of a kernel also its spectrum, and which borders suit it."""
    image_size, padding_value = None if size is None else parse_size(size), parse_padding(padding)
    records: list[dict[str, Any]] = []
    failures: list[tuple[Path, DeconvError]] = []
    reader = _Reader(taken_for, image_size, padding_value, tensor, series, reading, show=show)
    for path in inputs:
        try:
            record = reader.describe(path)
        except DeconvError as error:
            if len(inputs) == 1:
                raise
            failures.append((path, error))
            print_error(f"{path}: {with_options(str(error))}")
            continue
        records.append(record)
        if not as_json:
            print_inspection(record)
    if as_json:
        failed = [{"path": str(path), "error": str(error)} for path, error in failures]
        print_document({"schema": 1, "command": "inspect", "files": records, "failed": failed})
    if failures:
        raise typer.Exit(ExitCode.UNTRUSTWORTHY if records else exit_code_for(failures[0][1]))


class _Reader:
    """Reads one file after another with the same options."""

    def __init__(
        self,
        taken_for: Kind | None,
        size: Size | None,
        padding: PaddingLike,
        tensor: str | None,
        series: int | None,
        reading: KernelReading,
        *,
        show: bool,
    ) -> None:
        self._taken_for = taken_for
        self._size = size
        self._padding = padding
        self._tensor = tensor
        self._series = series
        self._reading = reading
        self._show = show

    def describe(self, path: Path) -> dict[str, Any]:
        """Tell all of one file."""
        from deconv_cli.io.file_inspection import inspect_file
        from deconv_cli.io.files import spelled

        started = time.perf_counter()
        found = inspect_file(
            path,
            tensor=self._tensor,
            series=self._series,
            open_file=_open_tensors_or_model,
            is_whole=self._taken_for is Kind.KERNEL,
        )
        entries = [self._describe_entry(found, entry) for entry in found.entries]
        return {
            "path": spelled(path),
            "format": found.codec.name,
            "sha256": found.sha256,
            "entries": entries,
            "metadata": found.metadata,
            "made_by": None if found.record is None else _made_by(found.record),
            "notes": [*found.notes, *_field_notes(found), *_sampling_notes(found)],
            "time_s": time.perf_counter() - started,
        }

    def _describe_entry(self, found: Inspected, entry: Entry) -> dict[str, Any]:
        from deconv_cli.io.file_inspection import as_image, as_kernel
        from deconv_cli.report.reconstruction_record import describe_samples
        from deconv_cli.workflows.inspection import inspect_samples

        if self._taken_for is not None and not _is_field(found):  # whose tensors are no kernel each
            entry = as_kernel(entry) if self._taken_for is Kind.KERNEL else as_image(entry)
        statistics = inspect_samples(entry.samples)
        kernel = refusal = None
        if entry.is_kernel and statistics.is_finite and bool(entry.samples.any()):
            try:
                kernel = self._describe_kernel(found.path, entry)
            except DeconvError as error:
                # One layer that cannot be undone says nothing about the others, unless it alone was asked for.
                if self._taken_for is Kind.KERNEL or len(found.entries) == 1:
                    raise
                refusal = str(error)
        if self._show:
            self._draw(found, entry)
        is_image = found.codec.is_picture or entry.axes is not None
        return {
            "name": entry.name or None,
            "kind": "kernel" if entry.is_kernel else "image" if is_image else "tensor",
            "shape": list(entry.shape),
            "axes": entry.axes,
            "dtype": entry.dtype,
            "is_sampled": entry.whole is not None,
            **describe_samples(statistics),
            "kernel": kernel,
            "kernel_refusal": refusal,
        }

    def _describe_kernel(self, path: Path, entry: Entry) -> dict[str, Any]:
        from deconv_cli.models.kernel_files import read_kernel
        from deconv_cli.report.reconstruction_record import describe_kernel_properties
        from deconv_cli.workflows.inspection import inspect_kernel

        read = read_kernel(
            path,
            layer=entry.name or None,
            convention=self._reading.convention,
            normalize=self._reading.normalize,
            dimensions=None if self._size is None else len(self._size),
        )
        _check_plain(read)
        size = self._size or IMAGE_SIZES[read.dimensions]
        if len(size) != read.dimensions:
            raise UsageError(
                f"kernel '{path}' of shape {tuple(read.kernel.shape)} spans {read.dimensions} axes, but the size of "
                f"the images, {','.join(map(str, size))}, has {len(size)} numbers; give one for each."
            )
        return {
            "layer": read.layer,
            "convention": read.convention.value,
            "has_bias": read.bias is not None,
            **describe_kernel_properties(inspect_kernel(read.kernel, size, self._padding, dimensions=read.dimensions)),
            "padding": format_padding(self._padding),
            "notes": list(read.notes),
        }

    def _draw(self, found: Inspected, entry: Entry) -> None:
        """Draw what has a plane: the first one, or the colors of a picture."""
        from deconv_cli.commands.terminal_picture import show_picture

        samples = entry.samples
        if samples.ndim < 2 or 0 in samples.shape or entry.whole is not None:
            return
        is_color = found.codec.is_picture and entry.axes == "YXS" and samples.shape[-1] >= 3
        planes = samples.movedim(-1, 0)[:3] if is_color else _planes(samples, entry.axes)
        show_picture(planes, is_color=is_color)


def _check_plain(read: KernelFile) -> None:
    """Refuse to judge a layer by its taps alone, where it does more than to slide them by single pixels.

    Raises:
        ShapeError: it does.
    """
    from deconv_cli.commands.loaded_kernel import recorded_by_model

    if read.geometry and not (layer := recorded_by_model(read.geometry).layer).is_plain:
        raise ShapeError(
            f"'{read.path}' holds a layer with {layer.describe()}, whose spectrum and borders are not those of its "
            "taps; deconv invert undoes it all the same."
        )
    if read.bias is not None and len(read.bias) != len(read.kernel):
        raise ShapeError(
            f"the bias of '{read.path}' has {len(read.bias)} numbers, but a kernel of shape {tuple(read.kernel.shape)} "
            f"has {len(read.kernel)} outputs; the layer may be a transposed one, which its tensors do not say."
        )


def _open_tensors_or_model(path: Path, codec: TensorCodec) -> TensorFile:
    """List the tensors of a file, or of a whole module that torch saved."""
    from deconv_cli.io.codecs.torch_file import TorchFile
    from deconv_cli.io.files import read_head
    from deconv_cli.io.tensors import open_tensors
    from deconv_cli.models.layers import open_torch_file

    try:
        return open_tensors(path, codec)
    except UnsafeInputError:
        if not isinstance(codec, TorchFile):
            raise
        return open_torch_file(path, read_head(path))[0]


def _is_field(found: Inspected) -> bool:
    """Tell whether a file holds a kernel that varies over the frame."""
    from deconv_cli.models.kernel_files import FIELD_TENSORS

    return {entry.name for entry in found.entries} == set(FIELD_TENSORS)


def _sampling_notes(found: Inspected) -> list[str]:
    """Say of large arrays that only pieces of them were read."""
    notes = []
    for entry in found.entries:
        if entry.whole is not None:
            name = f"{entry.name}: " if entry.name else ""
            notes.append(
                f"{name}range, mean and what is not finite are those of {entry.samples.numel()} of "
                f"{math.prod(entry.whole)} samples, in {len(entry.samples)} pieces spread over the array; nothing else "
                "of it was read or drawn"
            )
    return notes


def _field_notes(found: Inspected) -> list[str]:
    """Describe a kernel that varies over the frame in a sentence."""
    from deconv_cli.saved_kernels import load_kernel_field

    return [] if not _is_field(found) else [f"the file holds {load_kernel_field(found.path).describe()}"]


def _made_by(record: dict[str, Any]) -> str | None:
    """Give the command that made a file, or of a picture that keeps no more, what it did."""
    if "command" not in record or "rerun" in record:
        return record.get("rerun")
    choices = {name: record[name] for name in ("boundary", "padding", "method", "lambda", "noise") if name in record}
    return ", ".join([f"deconv {record['command']}", *(f"{name} {value}" for name, value in choices.items())])


def _planes(samples: Any, axes: str | None) -> Any:  # noqa: ANN401
    """Arrange samples as planes `(n, H, W)`, rows and columns where their axes say, else at the end."""
    if axes is not None and "Y" in axes and "X" in axes:
        samples = samples.movedim((axes.index("Y"), axes.index("X")), (-2, -1))
    return samples.reshape(-1, *samples.shape[-2:])
