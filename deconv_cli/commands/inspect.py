"""`deconv inspect`: what images, tensors and kernels are."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deconv_cli.commands.console import (
    about,
    cut_in_middle,
    print_document,
    print_error,
    print_note,
    print_table,
    print_warning,
    table_console,
)
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.commands.option_groups import JsonOption, KernelReading, optional
from deconv_cli.errors import DeconvError, ShapeError, UnsafeInputError, UsageError
from deconv_cli.prompt_sentences import with_options
from deconv_cli.vocabulary import SCHEMA, PaddingLike, Size, format_padding, format_size, parse_padding, parse_size

if TYPE_CHECKING:
    from deconv_cli.io.file_inspection import Entry, Inspected
    from deconv_cli.io.tensors import TensorCodec, TensorFile
    from deconv_cli.models.kernel_files import KernelFile

EXAMPLE = "Example: deconv inspect sample_images/layer.safetensors --size 32,32"

IMAGE_SIZES = {1: (1024,), 2: (128, 128), 3: (32, 64, 64)}
"""Sizes of the images that a kernel is judged for, by its number of axes."""
MAX_ENTRIES = 40
"""Arrays of one file that the table lists; `--json` has all."""
_WORDS = {True: "well posed", False: "not well posed", None: "not tested"}

Kind = Literal["image", "kernel"]
"""How to read the content of a file."""


def inspect(
    inputs: Annotated[list[Path], typer.Argument(metavar="FILE", help="Pictures, tensors, kernels, state dicts.")],
    reading: KernelReading,
    taken_for: Kind | None = optional(
        "--as",
        "Read the files as images or kernels. Default: bare tensors of four axes and weights of layers are "
        "kernels, all others images.",
    ),
    size: str | None = optional(
        "--size [D,]H,W",
        "Size of the images to judge a kernel for; one number for each axis of the kernel. Default: 128,128, and "
        "32,64,64 for stacks.",
    ),
    padding: str = optional(
        "--padding same|valid|full|N|NH,NW", "Reach of the kernel outside the image.", default="same"
    ),
    tensor: str | None = optional(
        "--tensor NAME", "Name of the tensor or layer, if the file holds several. Default: all."
    ),
    series: int | None = optional(
        "--series N", "Number of the image, from 0, if a TIFF or OME-Zarr holds several.", min=0
    ),
    as_json: JsonOption = False,
) -> None:
    """Show the shape, range and metadata of files; for a kernel also its spectrum and the boundaries that suit it."""
    image_size, padding_value = None if size is None else parse_size(size), parse_padding(padding)
    records: list[dict[str, Any]] = []
    failures: list[tuple[Path, DeconvError]] = []
    reader = _Reader(taken_for, image_size, padding_value, tensor, series, reading)
    for path in inputs:
        try:
            records.append(reader.describe(path))
        except DeconvError as error:
            if len(inputs) == 1:
                raise
            failures.append((path, error))
            print_error(about(path, with_options(str(error))))
            continue
        if not as_json:
            _print_inspection(records[-1])
    if as_json:
        failed = [{"path": str(path), "error": str(error)} for path, error in failures]
        print_document({"schema": SCHEMA, "command": "inspect", "files": records, "failed": failed})
    if failures:
        raise typer.Exit(ExitCode.UNTRUSTWORTHY if records else exit_code_for(failures[0][1]))


@dataclass(frozen=True)
class _Reader:
    """Describes one file after another with the same options."""

    taken_for: Kind | None
    size: Size | None
    padding: PaddingLike
    tensor: str | None
    series: int | None
    reading: KernelReading

    def describe(self, path: Path) -> dict[str, Any]:
        """Describe one file."""
        from deconv_cli.io.file_inspection import inspect_file

        started = time.perf_counter()
        found = inspect_file(
            path,
            tensor=self.tensor,
            series=self.series,
            open_file=_open_tensors_or_model,
            is_whole=self.taken_for == "kernel",
        )
        entries = [self._describe_entry(found, entry) for entry in found.entries]
        return {
            "path": str(path),
            "format": found.codec.name,
            "sha256": found.sha256,
            "entries": entries,
            "metadata": found.metadata,
            "made_by": None if found.record is None else _made_by(found.record),
            "notes": [*found.notes, *_content_notes(found)],
            "time_s": time.perf_counter() - started,
        }

    def _describe_entry(self, found: Inspected, entry: Entry) -> dict[str, Any]:
        from deconv_cli.io.file_inspection import measure_samples
        from deconv_cli.io.layout import letters_of_tensor

        if self.taken_for is not None and not _is_field(found):  # a single tensor of a field is not a kernel
            is_kernel = self.taken_for == "kernel"
            axes = None if is_kernel else entry.axes or letters_of_tensor(len(entry.shape))
            entry = replace(entry, is_kernel=is_kernel, axes=axes)
        statistics = measure_samples(entry.samples)
        kernel = refusal = None
        if entry.is_kernel and not statistics["nan"] + statistics["infinite"] and bool(entry.samples.any()):
            try:
                kernel = self._describe_kernel(found.path, entry)
            except DeconvError as error:
                # A layer that cannot be inverted does not keep the others from being described.
                if self.taken_for == "kernel" or len(found.entries) == 1:
                    raise
                refusal = str(error)
        is_image = found.codec.is_picture or entry.axes is not None
        return {
            "name": entry.name or None,
            "kind": "kernel" if entry.is_kernel else "image" if is_image else "tensor",
            "shape": list(entry.shape),
            "axes": entry.axes,
            "dtype": entry.dtype,
            "is_sampled": entry.whole is not None,
            **statistics,
            "kernel": kernel,
            "kernel_refusal": refusal,
        }

    def _describe_kernel(self, path: Path, entry: Entry) -> dict[str, Any]:
        from deconv_cli.diagnostics.well_posedness import inspect_kernel
        from deconv_cli.models.kernel_files import read_kernel
        from deconv_cli.report.reconstruction_record import describe_kernel_properties

        read = read_kernel(
            path,
            layer=entry.name or None,
            convention=self.reading.convention,
            normalize=self.reading.normalize,
            dimensions=None if self.size is None else len(self.size),
        )
        _check_plain(read)
        size = self.size or IMAGE_SIZES[read.dimensions]
        if len(size) != read.dimensions:
            raise UsageError(
                f"kernel '{path}' of shape {tuple(read.kernel.shape)} spans {read.dimensions} axes, but the size of "
                f"the images, {','.join(map(str, size))}, has {len(size)} numbers; give one for each."
            )
        return {
            "layer": read.layer,
            "convention": read.convention.value,
            "has_bias": read.bias is not None,
            **describe_kernel_properties(inspect_kernel(read.kernel, size, self.padding, dimensions=read.dimensions)),
            "padding": format_padding(self.padding),
            "notes": list(read.notes),
        }


def _print_inspection(record: dict[str, Any]) -> None:
    """Print the content of a file on stdout, then notes and warnings on stderr."""
    entries, metadata = record["entries"], _shown(record["metadata"])
    width = table_console(stderr=False).width - max(map(len, metadata), default=0) - 2
    rows = [("format", record["format"])]
    for entry in entries[:MAX_ENTRIES]:
        rows += _entry_rows(entry, is_only=len(entries) == 1)
    if len(entries) > MAX_ENTRIES:
        rows.append(("", f"and {len(entries) - MAX_ENTRIES} more; --json lists all of them"))
    rows += [(name, cut_in_middle(value, width)) for name, value in metadata.items()]
    if record["made_by"] is not None:
        rows.append(("made by", str(record["made_by"])))
    print_table(record["path"], rows, to_stdout=True)
    for note in record["notes"]:
        print_note(note)
    for entry in entries:
        _print_findings(entry)


def _entry_rows(entry: dict[str, Any], *, is_only: bool) -> list[tuple[str, str]]:
    shape = format_size(entry["shape"]) or "a single number"
    letters = "" if entry["axes"] is None else f" {entry['axes']}"
    name = "" if entry["name"] is None else f"{entry['name']}  "
    rows = [(entry["kind"], f"{name}{shape}{letters} {entry['dtype']}")]
    if entry["minimum"] is not None:
        spread = "" if entry["mean"] is None else f", mean {entry['mean']:.4g} ± {entry['standard_deviation']:.4g}"
        title = "range of pieces" if entry["is_sampled"] else "range"
        rows.append((title if is_only else "", f"{entry['minimum']:.6g} to {entry['maximum']:.6g}{spread}"))
    return rows if entry["kernel"] is None else rows + _kernel_rows(entry["kernel"])


def _kernel_rows(kernel: dict[str, Any]) -> list[tuple[str, str]]:
    spectrum, gain = kernel["spectrum"], kernel["dc_gain"]
    condition = spectrum["condition"]
    offsets = zip(kernel["centroid_offset"], ("deep", "down", "across")[-len(kernel["size"]) :], strict=True)
    offset = ", ".join(f"{offset:+.2f} {direction}" for offset, direction in offsets)
    size = format_size(spectrum["image_size"])
    channels = kernel["channels"]
    total = f"sum {gain:.6g}" if channels is None else f"{channels[0]} → {channels[1]} channels"
    rows = [
        ("taps", f"{kernel['convention']}, {total}{', with a bias' if kernel['has_bias'] else ''}"),
        (
            "center",
            f"tap {tuple(kernel['origin'])}; the center of mass is {offset} from it"
            + (", symmetric" if kernel["is_symmetric"] else ""),
        ),
        (
            "spectrum",
            f"σmax {spectrum['sigma_max']:.4g}, σmin {spectrum['sigma_min']:.4g}, condition "
            f"{'infinite' if condition is None else f'{condition:.4g}'} on {size} pixels",
        ),
    ]
    findings: dict[str, list[str]] = {}
    for border in kernel["borders"]:
        found = border["well_posedness"]
        word = "not possible" if found is None else _WORDS[found["is_well_posed"]]
        findings.setdefault(f"{word}: {border['reason']}", []).append(border["boundary"])
    said = [f"{', '.join(borders)}: {finding}" for finding, borders in findings.items()]
    return rows + [("boundaries" if place == 0 else "", sentence) for place, sentence in enumerate(said)]


def _print_findings(entry: dict[str, Any]) -> None:
    name = "" if entry["name"] is None else f"{entry['name']}: "
    n_bad = entry["nan"] + entry["infinite"]
    if n_bad:
        print_warning(
            f"{name}{n_bad} of {entry['samples']} samples are not finite ({entry['nan']} NaN, {entry['infinite']} "
            "infinite); replace them first"
        )
    elif entry["kernel_refusal"] is not None:
        print_warning(f"{name}{with_options(entry['kernel_refusal'])}")
    elif entry["kind"] == "kernel" and entry["kernel"] is None:
        print_warning(f"{name}all taps are zero, so the output of every image is zero")
    for note in [] if entry["kernel"] is None else entry["kernel"]["notes"]:
        print_note(f"{name}{note}")


def _shown(metadata: dict[str, Any]) -> dict[str, str]:
    """Write metadata for the table; a density other than a print's as distances, `0.3 × 0.1 × 0.1 µm`."""
    density, depth = metadata.get("resolution", {}), metadata.get("plane_distance")
    unit = density.get("pixels_per")
    if unit and (unit not in ("inch", "cm") or depth is not None):
        distances = [f"{step:.4g}" for step in (depth, 1 / density["y"], 1 / density["x"]) if step is not None]
        rest = {name: value for name, value in metadata.items() if name not in ("resolution", "plane_distance")}
        metadata = {"spacing": f"{' × '.join(distances)} {unit}", **rest}
    return {name.replace("_", " "): _value(value) for name, value in metadata.items()}


def _value(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_value(member)}" for name, member in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def _check_plain(read: KernelFile) -> None:
    """Refuse, by `ShapeError`, a layer whose taps alone do not decide its spectrum and boundaries."""
    from deconv_cli.commands.loaded_kernel import recorded_by_model

    if read.geometry and not (layer := recorded_by_model(read.geometry).layer).is_plain:
        raise ShapeError(
            f"'{read.path}' holds a layer with {layer.describe()}, so its taps alone do not decide its spectrum and "
            "boundaries; deconv invert can still undo it."
        )
    if read.bias is not None and len(read.bias) != len(read.kernel):
        raise ShapeError(
            f"the bias of '{read.path}' has {len(read.bias)} numbers, but a kernel of shape "
            f"{tuple(read.kernel.shape)} has {len(read.kernel)} outputs; the layer may be transposed, which its "
            "tensors do not show."
        )


def _open_tensors_or_model(path: Path, codec: TensorCodec) -> TensorFile:
    """List the tensors of a file, or of a whole module saved by torch."""
    from deconv_cli.io.codecs.tensor_codecs import TorchFile
    from deconv_cli.io.tensors import open_tensors

    try:
        return open_tensors(path, codec)
    except UnsafeInputError:
        if not isinstance(codec, TorchFile):
            raise
        from deconv_cli.models.layers import open_torch_file

        return open_torch_file(path)[0]


def _is_field(found: Inspected) -> bool:
    """Return whether a file holds a kernel that varies over the frame."""
    if len(found.entries) == 1:  # as a picture has; the names come with torch
        return False
    from deconv_cli.models.kernel_files import FIELD_TENSORS

    return {entry.name for entry in found.entries} == set(FIELD_TENSORS)


def _content_notes(found: Inspected) -> list[str]:
    """Describe a kernel that varies over the frame, and note which large arrays were only sampled."""
    notes = []
    if _is_field(found):
        from deconv_cli.saved_files import load_kernel_field

        notes.append(f"the file holds {load_kernel_field(found.path).describe()}")
    for entry in found.entries:
        if entry.whole is not None:
            name = f"{entry.name}: " if entry.name else ""
            notes.append(
                f"{name}range, mean and the count of non-finite samples come from {entry.samples.size} of "
                f"{math.prod(entry.whole)} samples, in {len(entry.samples)} pieces spread over the array; the rest "
                "was not read"
            )
    return notes


def _made_by(record: dict[str, Any]) -> str | None:
    """Return the command that made a file; for a picture with a short record, what the command did."""
    if "command" not in record or "rerun" in record:
        return record["rerun"].replace(" --force", "") if "rerun" in record else None
    choices = {name: record[name] for name in ("boundary", "padding", "method", "lambda", "noise") if name in record}
    return ", ".join([f"deconv {record['command']}", *(f"{name} {value}" for name, value in choices.items())])
