"""What the `deconv kernel` commands share: options, numbers for each axis, files of kernels, and the answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deconv_cli.commands.console import Rows, print_answer, print_document, print_note, print_table
from deconv_cli.commands.option_groups import ForceOption, JsonOption, QuietOption, option, optional
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import SCHEMA, parse_numbers, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io.codec import StoredImage

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
class KernelAnswer:
    """The file of a command that makes a kernel, and what it prints."""

    output: Path | None = optional(
        "--output -o FILE",
        "Write the kernel: .safetensors, .pt, .npy and .npz hold the taps of a cross-correlation; a .tif shows "
        "them as a camera does, reversed along each axis, and is divided by its sum on reading.",
    )
    force: ForceOption = False
    as_json: JsonOption = False
    quiet: QuietOption = False

    def check(self, source: Path, *others: Path | None, is_picture: bool = True) -> None:
        """Refuse, by `UsageError`, the output or another file that exists or cannot hold a kernel.

        A TIFF holds those that are pictures.
        """
        from deconv_cli.io.codec import codec_named, codec_of_suffix
        from deconv_cli.io.output import check_output_files
        from deconv_cli.io.tensors import TensorCodec

        for path in filter(None, (self.output, *others)):
            codec = codec_named(path)
            if not isinstance(codec, TensorCodec) and (codec is None or codec.name != "TIFF" or not is_picture):
                what = "a kernel is written as .tif," if is_picture else "a kernel that is not a picture is written as"
                raise UsageError(f"{what} .safetensors, .pt, .npy or .npz, but the output is '{path}'.")
            check_output_files(path, codec_of_suffix(path), source, force=self.force)

    def give(
        self,
        title: str,
        record: dict[str, Any],
        rows: Rows,
        notes: Iterable[str] = (),
        *,
        taps: Tensor | None,
        n_axes: int = 2,
        spacing: tuple[float, ...] | None = None,
        answer: str | None = None,
    ) -> None:
        """Write taps as `write_kernel` does, if some were found, and print them; without a file, print the answer."""
        written = None if taps is None else self.output
        record = {"schema": SCHEMA, **record, "output": None if written is None else str(written)}
        if written is not None and taps is not None:
            write_kernel(written, taps, record, n_axes, spacing)
        self.show(title, record, rows, notes, answer if written is None else str(written))

    def show(
        self, title: str, record: dict[str, Any], rows: Rows, notes: Iterable[str], answer: str | None = None
    ) -> None:
        """Print a table and notes, and then the record, or the answer: the file that was written, or what was found."""
        if not self.quiet:
            print_table(title, rows)
            for note in notes:
                print_note(note)
        if self.as_json:
            print_document(record)
        elif answer is not None:
            print_answer(answer)


def checked_channel(channel: int, n_channels: int) -> int:
    """Return a channel if there is one of that number; else raise a `UsageError`."""
    if channel >= n_channels:
        raise UsageError(f"--channel must be from 0 to {n_channels - 1} here, but is {channel}.")
    return channel


def parse_size_of_stack(text: str, n_axes: int) -> tuple[int, ...]:
    """Read `--size`: a number for each axis, or only the planes of a stack."""
    return numbers_of_axes(text, "--size", (1, 3) if n_axes == 3 else (n_axes,), int)


def numbers_of_axes(text: str, name: str, counts: tuple[int, ...], kind: type[Any]) -> tuple[Any, ...]:
    """Read as many numbers as one of `counts`, for the axes; else raise a `UsageError` about the option `name`."""
    read = parse_numbers(text)
    found = read if isinstance(read, tuple) else (read,)
    if len(found) not in counts or not all(isinstance(n, int | kind) for n in found):
        wanted = " or ".join(map(str, counts))
        raise UsageError(f"{name} must hold {wanted} numbers, one for each axis, but is '{shortened(text)}'.")
    return tuple(map(kind, found))


def write_kernel(
    path: Path, taps: Tensor, record: dict[str, Any], n_axes: int, spacing: tuple[float, ...] | None = None
) -> None:
    """Write taps as float32, completely or not at all: a TIFF as a camera shows them, other files as they are.

    Args:
        path: of the file.
        taps: of a cross-correlation, shape `(*k)`, or `(C, *k)` for one a channel.
        record: how they were made.
        n_axes: axes of space.
        spacing: distance of neighboring taps along each axis, in µm.
    """
    import numpy as np

    from deconv_cli.io import records
    from deconv_cli.io.codec import StoredImage, codec_of_suffix
    from deconv_cli.io.output import write_with_record
    from deconv_cli.io.tensors import TensorCodec

    codec, kept = codec_of_suffix(path), without_paths(record)
    if isinstance(codec, TensorCodec):
        stored = StoredImage(taps.float().numpy(), record=kept)
    else:
        stored = _as_picture(taps.float(), kept, n_axes, spacing)
    digest = records.samples_digest(np.asarray(stored.samples))
    complete = records.complete_record(kept, stored.shape, stored.dtype, digest)
    stored = stored if isinstance(codec, TensorCodec) else replace(stored, record=complete)  # read only with a shape

    def check(temporary: Path) -> None:
        codec.read(temporary)

    write_with_record(path, codec, stored, complete, check)


def _as_picture(samples: Tensor, record: dict[str, Any], n_axes: int, spacing: tuple[float, ...] | None) -> StoredImage:
    """Arrange taps as a camera shows them, for a TIFF of ImageJ."""
    from fractions import Fraction

    from deconv_cli.io.codec import StoredImage
    from deconv_cli.io.codecs.tiff_reader import IMAGEJ
    from deconv_cli.io.metadata import Metadata, PixelDensity

    if samples.ndim > n_axes == 3:
        samples, axes = samples.movedim(0, 1), "ZCYX"  # in the order of ImageJ
    else:
        axes = "C"[: samples.ndim - n_axes] + "ZYX"[-n_axes:]
    metadata = Metadata(flavor="imagej")
    if spacing is not None:
        steps = [Fraction(step).limit_denominator(10**6) for step in spacing]
        distance = steps[0] if n_axes == 3 else None
        native = {f"{IMAGEJ}unit": "um"} | ({f"{IMAGEJ}spacing": float(steps[0])} if n_axes == 3 else {})
        resolution = PixelDensity(1 / steps[-1], 1 / steps[-2], "µm", distance)
        metadata = Metadata(resolution, native=native, flavor="imagej")
    space = [axes.index(letter) for letter in "ZYX"[-n_axes:]]
    return StoredImage(samples.flip(space).numpy(), axes, metadata, record)


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """Drop the names of files from a record that is written into a file, and the folder of the code of a loss."""
    kept = {name: value for name, value in record.items() if name not in ("input", "kernel_file", "output")}
    return kept | ({"loss": Path(kept["loss"]).name} if "loss" in kept else {})
