"""Where a kernel is written: what `deconv kernel` commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import print_answer, print_document
from deconv_cli.commands.option_groups import ForceOption, JsonOption, QuietOption, ShowOption
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import shortened

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io.codec import StoredImage

OutputFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the kernel: a .safetensors, .pt, .npy or .npz file.",
        show_default=False,
    ),
]
LightOption = Annotated[
    str,
    typer.Option(
        "--light",
        metavar="linear|stored|auto",
        help="What the blur acts on: linear light, or the samples as they are stored. Default: linear light where the "
        "file says how its samples encode it.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class AnswerOptions:
    """What a command prints that gives a kernel, and whether it may overwrite files."""

    force: ForceOption = False
    show: ShowOption = False
    as_json: JsonOption = False
    quiet: QuietOption = False


MAX_TILES = 64
"""Kernels of a layer that are drawn."""


def parse_numbers(text: str, option: str, counts: tuple[int, ...], kind: type[Any]) -> tuple[Any, ...]:
    """Read one number for each axis, `kind` of them, as many as one of `counts`.

    Raises:
        UsageError: others.
    """
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in counts:
        wanted = " or ".join(map(str, counts))
        raise UsageError(f"{option} must hold {wanted} numbers, one for each axis, but is '{shortened(text)}'.")
    return found


def parse_size(text: str, n_axes: int) -> tuple[int, ...]:
    """Read `--size` of a point-spread function: a number for each axis, or the planes of a stack alone."""
    return parse_numbers(text, "--size", (1, 3) if n_axes == 3 else (n_axes,), int)


def check_kernel_output(path: Path, source: Path, *, force: bool) -> None:
    """Refuse what a kernel cannot be written to, before anything is computed."""
    from deconv_cli.io.codec import codec_named
    from deconv_cli.io.tensors import TensorCodec

    if not isinstance(codec_named(path), TensorCodec):
        raise UsageError(f"a kernel is written as .safetensors, .pt, .npy or .npz, but the output is '{path}'.")
    check_psf_output(path, source, force=force)


def check_psf_output(path: Path, source: Path, *, force: bool) -> None:
    """Refuse what a point-spread function cannot be written to."""
    from deconv_cli.io.codec import codec_of_suffix
    from deconv_cli.io.output import check_output_files

    check_output_files(path, codec_of_suffix(path), source, force=force)


def write_kernel(path: Path, taps: Tensor, record: dict[str, Any]) -> None:
    """Write taps as float32, completely or not at all."""
    from deconv_cli.io.codec import StoredImage

    _write(path, StoredImage(samples=taps.float().numpy(), record=record))


def write_psf(path: Path, psf: Tensor, record: dict[str, Any], spacing: tuple[float, ...] | None) -> None:
    """Write a point-spread function `(*size)`: as a camera shows it into a TIFF, else as taps of a cross-correlation.

    Args:
        path: of the file.
        psf: picture of a point.
        record: what is to be known of how it was made.
        spacing: distance of its samples along each axis, in µm.
    """
    from fractions import Fraction

    from deconv_cli.io.codec import StoredImage, codec_of_suffix
    from deconv_cli.io.codecs.tiff_reader import IMAGEJ
    from deconv_cli.io.metadata import Metadata, Resolution
    from deconv_cli.io.tensors import TensorCodec

    codec = codec_of_suffix(path)
    if isinstance(codec, TensorCodec):
        write_kernel(path, psf.flip(tuple(range(psf.ndim))), record)
        return
    if codec.name != "TIFF":
        raise UsageError(f"fractions are written as .tif, .safetensors, .pt, .npy or .npz, but the output is '{path}'.")
    axes, metadata = "ZYX"[-psf.ndim :], Metadata(flavor="imagej")
    if spacing is not None:
        steps = [Fraction(step).limit_denominator(10**6) for step in spacing]
        distance = steps[0] if psf.ndim == 3 else None
        native = {f"{IMAGEJ}unit": "um"} | ({f"{IMAGEJ}spacing": float(steps[0])} if psf.ndim == 3 else {})
        resolution = Resolution(1 / steps[-1], 1 / steps[-2], "µm", distance)
        metadata = Metadata(resolution, native=native, flavor="imagej")
    _write(path, StoredImage(psf.float().numpy(), axes, metadata, record))


def _write(path: Path, stored: StoredImage) -> None:
    """Write what is stored with its record, and read it again before it takes the place of another file."""
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
    """Leave the names of files out of a record that goes into one."""
    return {name: value for name, value in record.items() if name not in ("input", "kernel_file", "output")}


def print_kernel(taps: Tensor, record: dict[str, Any], answer: Path | str | None, printed: AnswerOptions) -> None:
    """Draw a kernel where that is wanted, and print its record, or the answer: the file that it was written to."""
    if printed.show:
        _show_taps(taps)
    if printed.as_json:
        print_document(record)
    elif answer is not None:
        print_answer(str(answer))


def _show_taps(taps: Tensor) -> None:
    """Draw taps `(*k)` or `(n, m, *k)` on the terminal: kernels of a layer side by side, of a volume its middle."""
    import math

    from torch.nn import functional

    from deconv_cli.commands.terminal_picture import show_picture

    planes = taps.double()
    planes = planes.flatten(0, 1) if planes.ndim > 3 else planes[None] if planes.ndim < 3 else planes
    if planes.ndim == 4:
        planes = planes[:, planes.shape[1] // 2]
    if planes.ndim == 2:
        planes = planes[:, None]
    planes = planes[:MAX_TILES]
    across = math.ceil(math.sqrt(len(planes)))
    missing = across * math.ceil(len(planes) / across) - len(planes)
    tiles = functional.pad(planes, (0, 1, 0, 1, 0, missing), value=float(planes.min()))
    mosaic = tiles.unflatten(0, (-1, across)).movedim(1, 2).flatten(2, 3).flatten(0, 1)
    show_picture(mosaic[None, :-1, :-1], is_color=False)
