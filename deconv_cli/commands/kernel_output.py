"""What the `deconv kernel` commands share: options, numbers for each axis, files of kernels, and the answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deconv_cli.commands.console import print_answer, print_document, print_note, print_table
from deconv_cli.commands.option_groups import ForceOption, JsonOption, QuietOption, option
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import parse_numbers, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io.codec import StoredImage

OutputFile = Annotated[
    Path | None,
    option(
        "--output -o FILE",
        "Write the kernel: .safetensors, .pt, .npy and .npz hold the taps of a cross-correlation; a .tif shows them "
        "as a camera does, reversed along each axis, and is divided by its sum on reading.",
    ),
]
LightOption = Annotated[
    str,
    option(
        "--light linear|stored|auto",
        "What the blur acts on: linear light, or the samples as stored. Default: linear light if the encoding of the "
        "samples is known.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class AnswerOptions:
    """The output of a command that makes a kernel, and whether it may overwrite files."""

    force: ForceOption = False
    as_json: JsonOption = False
    quiet: QuietOption = False


def numbers_of_axes(text: str, name: str, counts: tuple[int, ...], kind: type[Any]) -> tuple[Any, ...]:
    """Read as many numbers as one of `counts`, for the axes; else raise a `UsageError` about the option `name`."""
    read = parse_numbers(text)
    found = read if isinstance(read, tuple) else (read,)
    if len(found) not in counts or not all(isinstance(n, int | kind) for n in found):
        wanted = " or ".join(map(str, counts))
        raise UsageError(f"{name} must hold {wanted} numbers, one for each axis, but is '{shortened(text)}'.")
    return tuple(map(kind, found))


def check_kernel_output(path: Path | None, source: Path, *, force: bool, is_picture: bool = True) -> None:
    """Refuse, by `UsageError`, a file that exists or cannot hold a kernel; a TIFF holds those that are pictures."""
    from deconv_cli.io.codec import codec_named, codec_of_suffix
    from deconv_cli.io.output import check_output_files
    from deconv_cli.io.tensors import TensorCodec

    if path is None:
        return
    codec = codec_named(path)
    if not isinstance(codec, TensorCodec) and (codec is None or codec.name != "TIFF" or not is_picture):
        what = "a kernel is written as .tif," if is_picture else "a kernel that is not a picture is written as"
        raise UsageError(f"{what} .safetensors, .pt, .npy or .npz, but the output is '{path}'.")
    check_output_files(path, codec_of_suffix(path), source, force=force)


def write_kernel(
    path: Path | None, taps: Tensor, record: dict[str, Any], n_axes: int, spacing: tuple[float, ...] | None = None
) -> None:
    """Write taps as float32, completely or not at all: a TIFF as a camera shows them, other files as they are.

    Args:
        path: of the file; `None` writes nothing.
        taps: of a cross-correlation, shape `(*k)`, or `(C, *k)` for one a channel.
        record: how they were made.
        n_axes: axes of space.
        spacing: distance of neighboring taps along each axis, in µm.
    """
    from fractions import Fraction

    from deconv_cli.io.codec import StoredImage, codec_of_suffix
    from deconv_cli.io.codecs.tiff_reader import IMAGEJ
    from deconv_cli.io.metadata import Metadata, PixelDensity
    from deconv_cli.io.tensors import TensorCodec

    if path is None:
        return
    samples, kept = taps.float(), without_paths(record)
    if isinstance(codec_of_suffix(path), TensorCodec):
        _write(path, StoredImage(samples.numpy(), record=kept))
        return
    if taps.ndim > n_axes == 3:
        samples, axes = samples.movedim(0, 1), "ZCYX"  # in the order of ImageJ
    else:
        axes = "C"[: taps.ndim - n_axes] + "ZYX"[-n_axes:]
    space = [axes.index(letter) for letter in "ZYX"[-n_axes:]]
    metadata = Metadata(flavor="imagej")
    if spacing is not None:
        steps = [Fraction(step).limit_denominator(10**6) for step in spacing]
        distance = steps[0] if n_axes == 3 else None
        native = {f"{IMAGEJ}unit": "um"} | ({f"{IMAGEJ}spacing": float(steps[0])} if n_axes == 3 else {})
        resolution = PixelDensity(1 / steps[-1], 1 / steps[-2], "µm", distance)
        metadata = Metadata(resolution, native=native, flavor="imagej")
    _write(path, StoredImage(samples.flip(space).numpy(), axes, metadata, kept))


def _write(path: Path, stored: StoredImage) -> None:
    """Write samples with their record, and read them again before the file replaces another."""
    import numpy as np

    from deconv_cli.io import records
    from deconv_cli.io.codec import codec_of_suffix
    from deconv_cli.io.output import write_with_record

    codec = codec_of_suffix(path)

    def check(temporary: Path) -> None:
        codec.read(temporary)

    digest = records.samples_digest(np.asarray(stored.samples))
    complete = records.complete_record(stored.record or {}, stored.shape, stored.dtype, digest)
    write_with_record(path, codec, stored, complete, check)


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """Drop the names of files from a record that is written into a file."""
    return {name: value for name, value in record.items() if name not in ("input", "kernel_file", "output")}


def print_kernel(
    printed: AnswerOptions,
    title: str,
    rows: list[tuple[str, str]],
    notes: Iterable[str],
    record: dict[str, Any],
    answer: Path | str | None,
) -> None:
    """Print a table and notes, and then the record, or the answer: the file that was written, or what was found."""
    if not printed.quiet:
        print_table(title, rows)
        for note in notes:
            print_note(note)
    if printed.as_json:
        print_document(record)
    elif answer is not None:
        print_answer(str(answer))
