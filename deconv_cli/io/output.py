"""Planning where a result goes and as what: all that can be refused is refused before the computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from deconv_cli.errors import UsageError
from deconv_cli.io import ome, records
from deconv_cli.io.arrangement import arrange, axes_notes, renamed, tiff_axes_for
from deconv_cli.io.drafts import Draft
from deconv_cli.io.formats import DISPLAY_DTYPES, SIDECAR_FORMATS, FileFormat, format_of_suffix, is_ome_name
from deconv_cli.io.image import ImageFile
from deconv_cli.io.places import check_place, check_writable
from deconv_cli.io.prepared import PreparedOutput
from deconv_cli.io.quantize import to_dtype
from deconv_cli.vocabulary import OutputDType


def plan_output(
    path: Path,
    source: ImageFile,
    *,
    n_channels: int,
    output_dtype: OutputDType | None,
    force: bool,
    same_size: bool,
    make_folder: bool = False,
) -> OutputPlan:
    """Decide where a result goes and as what.

    Args:
        path: its suffix tells the format.
        source: the image that the result is computed from, and whose manner it keeps.
        n_channels: channels of the result.
        output_dtype: its sample type; None for float32, or the source's whole numbers in PNG, JPEG and WebP.
        force: whether an existing file may be replaced.
        same_size: whether height and width of the result are those of the source.
        make_folder: whether a missing folder is made when the file is written.

    Raises:
        UsageError: no such folder, an existing file without `force`, or a format that cannot hold the result.
        FileAccessError: no permission to write into the folder.
    """
    path = Path(path)
    file_format = format_of_suffix(path)
    _check_place(path, source, file_format, force=force, make_folder=make_folder)
    if file_format.is_display_only:
        _check_display(path, source, file_format, n_channels)
    dtype = _choose_dtype(path, source, file_format, output_dtype)
    if file_format is FileFormat.TIFF and is_ome_name(path):
        _check_ome(path, source, dtype, n_channels)
    return OutputPlan(path, file_format, dtype, source, n_channels, same_size, make_folder)


@dataclass(frozen=True, eq=False)
class OutputPlan:
    """Where a result goes and as what; made before the computation, so that it does not fail after it."""

    path: Path
    format: FileFormat
    dtype: str
    _source: ImageFile
    _n_channels: int
    _same_size: bool
    _make_folder: bool

    def prepare(self, values: torch.Tensor) -> PreparedOutput:
        """Convert a result to the samples of the file.

        Args:
            values: floating, on the CPU, shape (B, C_new, H_new, W_new).

        Raises:
            UntrustworthyResultError: NaN or Inf in the result.
            UsageError: the picture is too large for the format.
        """
        self._check_promise(values)
        samples, notes = to_dtype(values.detach(), self.dtype)
        alpha, alpha_notes = self._alpha()
        axes, array = arrange(self._source, self.path, self.format, samples, alpha)
        draft = Draft(
            array=array,
            axes=axes,
            metadata=self._source._metadata,
            alpha=None if alpha is None else self._source._alpha_kind,
            same_channels=self._n_channels == self._source._layout.n_channels,
        )
        encode, lost = self._encoder(draft)
        lost = [*self._source._metadata.unsupported, *lost]
        carried = (f"not carried over: {', '.join(dict.fromkeys(lost))}",) if lost else ()
        return PreparedOutput(
            path=self.path,
            shape=array.shape,
            dtype=self.dtype,
            notes=(*notes, *alpha_notes, *axes_notes(self._source, self.format, axes, self._n_channels), *carried),
            _format=self.format,
            _draft=draft,
            _encode=encode,
            _make_folder=self._make_folder,
        )

    def _check_promise(self, values: torch.Tensor) -> None:
        """Hold the caller to what the plan was made for; a mismatch is a bug, not a person's mistake."""
        planes = self._source.values
        expected = (planes.shape[0], self._n_channels)
        is_same_size = values.shape[-2:] == planes.shape[-2:]
        if values.ndim != 4 or values.shape[:2] != expected or (self._same_size and not is_same_size):
            raise ValueError(f"planned for {expected} planes and channels, but the result is {tuple(values.shape)}")

    def _alpha(self) -> tuple[npt.NDArray[np.generic] | None, tuple[str, ...]]:
        """Convert the alpha of the source, or say why it is left out."""
        source = self._source._alpha
        if source is None:
            return None, ()
        reason = None
        converted = source.numpy().astype(self.dtype)
        if not self._same_size:
            reason = "the size has changed"
        elif self.format is FileFormat.JPEG or not self.format.is_picture:
            reason = f"{self.format} cannot hold it"
        elif self.format is FileFormat.TIFF and self._n_channels != self._source._layout.n_channels:
            reason = "the channels are no longer colors"
        elif self.format is FileFormat.WEBP and bool((source == 255).all()):
            reason = "it is opaque everywhere, which WebP does not store"
        elif not np.array_equal(converted.astype(np.float64), source.numpy().astype(np.float64)):
            reason = f"{self.dtype} cannot hold its values"
        if reason is not None:
            return None, (f"the alpha channel was dropped, since {reason}",)
        return converted, ("the alpha channel was copied unchanged",)

    def _encoder(self, draft: Draft) -> tuple[Callable[[Path, str], None], list[str]]:
        """Give the function that writes the file, and the names of what it cannot hold."""
        if self.format is FileFormat.TIFF:
            from deconv_cli.io import tiff_writer

            kind = tiff_writer.choose_kind(draft, wants_ome=is_ome_name(self.path), flavor=self._source._flavor)
            return (
                lambda path, record: tiff_writer.write_tiff(path, kind, draft, record),
                tiff_writer.lost_names(draft, kind),
            )
        if self.format.is_display_only:
            from deconv_cli.io import picture_writer

            picture_writer.check_size(self.path, self.format, *draft.array.shape[:2])
            return (
                lambda path, record: picture_writer.write_picture(path, self.format, draft, record),
                picture_writer.lost_names(draft, self.format),
            )
        from deconv_cli.io import tensor_writer

        return (
            lambda path, record: tensor_writer.write_tensor(path, self.format, draft, record),
            tensor_writer.lost_names(draft),
        )


def _check_place(path: Path, source: ImageFile, file_format: FileFormat, *, force: bool, make_folder: bool) -> None:
    folder = check_place(path, source.path, force=force, make_folder=make_folder)
    sidecar = records.beside(path)
    if file_format in SIDECAR_FORMATS and sidecar.exists() and not force:
        raise UsageError(f"the record would go to '{sidecar}', which exists already; pass --force to replace it.")
    check_writable(path, folder)


def _check_display(path: Path, source: ImageFile, file_format: FileFormat, n_channels: int) -> None:
    if source._layout.n_batch != 1:
        raise UsageError(
            f"'{path}' cannot hold {source._layout.n_batch} planes, since {file_format} holds one; choose .tif."
        )
    if n_channels not in (1, 3):
        raise UsageError(
            f"'{path}' cannot hold {n_channels} channels, since {file_format} holds 1 or 3; choose .tif, .pt, "
            ".safetensors or .npy."
        )


def _choose_dtype(path: Path, source: ImageFile, file_format: FileFormat, output_dtype: OutputDType | None) -> str:
    allowed = DISPLAY_DTYPES.get(file_format)
    if allowed is None:
        return str(output_dtype or OutputDType.FLOAT32)
    chosen = str(output_dtype) if output_dtype is not None else source.dtype
    if chosen not in allowed:
        words = "|".join(allowed)
        raise UsageError(
            f"'{path}' cannot hold {chosen} samples, since {file_format} holds whole numbers; pass --output-dtype "
            f"{words} (values are rounded and clipped, not rescaled) or choose .tif."
        )
    return chosen


def _check_ome(path: Path, source: ImageFile, dtype: str, n_channels: int) -> None:
    if dtype not in ome.WRITABLE_DTYPES:
        raise UsageError(f"'{path}' cannot hold {dtype} samples, since OME has no word for them; choose .tif.")
    allowed = tiff_axes_for(source, path)
    axes = renamed(source._layout.with_channels(n_channels).squeezed().axes, allowed)
    if set(axes) - set(allowed):
        raise UsageError(
            f"'{path}' cannot hold axes {source._layout.axes}, since OME knows T and Z beside channels; choose .tif."
        )
