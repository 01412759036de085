"""Planning where a result goes and as what: every refusal comes before the computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io import records
from deconv_cli.io.atomic import check_output_path, make_parents, write_atomically, write_line_beside
from deconv_cli.io.codec import Codec, StoredImage, WriteRequest, codec_of_suffix
from deconv_cli.io.image import ImageFile, read_stored
from deconv_cli.io.layout import Layout, convert_samples
from deconv_cli.io.limits import allowing, memory_budget
from deconv_cli.io.region_arrays import RegionSource, RegionTarget
from deconv_cli.vocabulary import OutputDType

if TYPE_CHECKING:
    import torch


def plan_output(
    path: Path,
    source: ImageFile,
    *,
    n_channels: int,
    output_dtype: OutputDType | None,
    force: bool,
    make_folder: bool = False,
) -> OutputPlan:
    """Decide where a result goes and as what.

    Args:
        path: its suffix decides the format.
        source: the image that the result is computed from, whose axes and metadata it keeps.
        n_channels: channels of the result.
        output_dtype: its sample type; None for float32, or the source's whole numbers in formats without fractions.
        force: whether an existing file may be replaced.
        make_folder: whether a missing folder is made when the file is written.

    Raises:
        UsageError: no such folder, an existing file without `force`, or a format that cannot hold the result.
        FileAccessError: no permission to write into the folder.
    """
    path = Path(path)
    codec = codec_of_suffix(path)
    check_output_files(path, codec, source.path, force=force, make_folder=make_folder)
    request = _request(path, codec, source, source.layout, n_channels, output_dtype)
    return OutputPlan(codec, request, source, make_folder)


def plan_regions(
    path: Path,
    source: RegionSource,
    layout: Layout,
    *,
    n_channels: int,
    size: Sequence[int],
    output_dtype: OutputDType | None = None,
    force: bool | None = False,
    make_folder: bool = False,
) -> RegionTarget:
    """Decide where a result that is written by parts goes, and as what; nothing is written yet.

    `layout` holds the axes and sizes of `source`, whose metadata the result keeps. `size` is that of the result in
    space, in the order of `layout.space`. `force` is `None` where the caller decides later whether an existing file may
    be replaced. All else, with the errors, is as in `plan_output`.
    """
    codec = codec_of_suffix(path)
    check_output_files(path, codec, source.path, force=force, make_folder=make_folder)
    request = _request(path, codec, source, layout, n_channels, output_dtype)
    return codec.plan_regions(request, request.layout_of_result(n_channels, size), source)


def _request(
    path: Path,
    codec: Codec,
    source: ImageFile | RegionSource,
    layout: Layout,
    n_channels: int,
    output_dtype: OutputDType | None,
) -> WriteRequest:
    """Describe a file to be written; raises `UsageError` if its format cannot hold the result."""
    default = source.dtype if codec.holds_whole_numbers_only else OutputDType.FLOAT32
    dtype = str(output_dtype or default)
    if dtype not in codec.dtypes:
        raise UsageError(
            f"'{path}' cannot hold {dtype} samples, since {codec.name} holds other ones; choose "
            f"output_dtype={'|'.join(codec.dtypes)} (values are rounded and clipped, not rescaled) or a .tif file."
        )
    request = WriteRequest(
        path, dtype, n_channels, layout, source.format_name, source.is_picture, source.metadata.flavor
    )
    codec.check(request)
    return request


def check_output_files(
    path: Path, codec: Codec, source: Path, *, force: bool | None, make_folder: bool = False
) -> None:
    """Refuse a path where no file of a format can be, or no record next to it, as `check_output_path` does."""
    check_output_path(path, source, force=force, make_folder=make_folder, is_folder=codec.is_folder)
    if not codec.record_inside:
        check_output_path(records.beside(path), source, force=force, make_folder=make_folder)


@dataclass(frozen=True, eq=False)
class OutputPlan:
    """Where a result goes and as what; made before the computation, so that it does not fail after it."""

    _codec: Codec
    _request: WriteRequest
    _source: ImageFile
    _make_folder: bool

    def prepare(self, values: torch.Tensor) -> PreparedOutput:
        """Convert a result to the samples of the file.

        Args:
            values: floating, on the CPU, shape (B, C_new, H_new, W_new), or as many axes of space as the source has.

        Raises:
            UntrustworthyResultError: NaN or Inf in the result.
            UsageError: the picture is too large for the format.
        """
        source, request = self._source, self._request
        images, expected = source.values, (source.values.shape[0], request.n_channels)
        if values.ndim != images.ndim or values.shape[:2] != expected:
            raise ValueError(
                f"planned for {expected} images and channels, but the result has the shape {tuple(values.shape)}"
            )
        converted = convert_samples(values.detach(), request.dtype)
        image = self._codec.with_metadata(request, self._codec.arrange(request, converted.samples), source.metadata)
        notes = (*converted.notes, *image.notes)
        return PreparedOutput(request.path, notes, self._codec, image, self._make_folder)


@dataclass(frozen=True, eq=False)
class PreparedOutput:
    """A result converted to the samples of its file, about to be written."""

    path: Path
    notes: tuple[str, ...]
    """On the conversion of samples, and on metadata that could not be carried over from the source."""
    _codec: Codec
    image: StoredImage
    """As it will be stored."""
    _make_folder: bool

    @property
    def dtype(self) -> str:
        """NumPy name of the sample type."""
        return self.image.dtype

    @cached_property
    def samples_sha256(self) -> str:
        """Hash of the samples; it ties a record beside a file to that file."""
        return records.samples_digest(np.asarray(self.image.samples))

    def write(self, record: dict[str, Any]) -> None:
        """Write the file with the record of the run, completely or not at all.

        Where a format takes no record, as `.pt` and `.npy`, it goes beside the file, into `NAME.npy.json`, as it is.
        Inside a file it has no absolute paths, and in a picture other than TIFF it is short.

        Args:
            record: a JSON object without NaN or Inf; `output.shape` and `output.dtype` are added if it lacks them.

        Raises:
            FileAccessError: disk full, no permission, or the file does not read back.
        """
        if self._make_folder:
            make_parents(self.path)
        complete = records.complete_record(record, self.image.shape, self.dtype, self.samples_sha256)
        choose = records.short_record if self._codec.has_short_record else records.without_folders
        image = replace(self.image, record=choose(complete))
        write_with_record(self.path, self._codec, image, complete, self._check)

    def _check(self, temporary: Path) -> None:
        with allowing(memory_budget()):
            found = read_stored(temporary, self._codec)
        if found.shape != self.image.shape or found.dtype != self.dtype:
            raise ValueError(f"{found.dtype} {found.shape} instead of {self.dtype} {self.image.shape}")
        if self._codec.is_lossless and not np.array_equal(np.asarray(found.samples), np.asarray(self.image.samples)):
            raise ValueError("some samples differ")


def write_with_record(
    path: Path, codec: Codec, image: StoredImage, record: dict[str, Any], check: Callable[[Path], None]
) -> None:
    """Write a file with the record of its image inside, or the complete `record` beside where the format takes none.

    `check` raises if the file at a path was not written as meant. A full disk, no permission, and a file that does not
    read back raise `FileAccessError`.
    """
    encoded = records.seal_record(records.finite(record))

    def write_samples() -> None:
        write_atomically(path, lambda temporary: codec.write(temporary, image), check)

    if codec.record_inside:
        write_samples()
    else:
        write_line_beside(records.beside(path), encoded, write_samples)
