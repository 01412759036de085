"""What a TIFF file means: its channels, its transparency, its metadata."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import imagej, ome, records
from deconv_cli.io.contents import Contents, Metadata, Resolution
from deconv_cli.io.tiff import TiffSeries, read_series

_PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES = 262, 274, 338
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_COLOR_MAP, _ICC_PROFILE = 320, 34675
_WHITE_IS_ZERO, _PALETTE, _SEPARATED, _CIELAB = 0, 3, 5, 8

TEXT_TAGS = {271: "Make", 272: "Model", 306: "DateTime", 315: "Artist", 316: "HostComputer", 33432: "Copyright"}

_STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 269, 270, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284),
    *(292, 293, 296, 297, 305, 317, 320, 322, 323, 324, 325, 330, 338, 339, 340, 341, 347, 529, 530, 531, 532),
    *(32997, 32996, 34675, 50838, 50839),
}


def read_tiff(path: Path, *, series: int | None) -> Contents:
    """Read one series of a TIFF file.

    Raises:
        UsageError: no series of this number.
        InputRefusedError: damaged, too large, or in a color model that is not understood.
    """
    found = read_series(path, series)
    contents = Contents(
        samples=found.samples,
        axes=found.axes,
        dtype=found.samples.dtype.name,
        metadata=_metadata(found),
        alpha=_alpha(found),
        orientation=_whole(found, _ORIENTATION, 1) if 1 <= _whole(found, _ORIENTATION, 1) <= 8 else 1,
        notes=_batch_notes(found),
    )
    return _expanded(path, found, _with_flavor(path, found, contents))


def _value(found: TiffSeries, code: int) -> Any:  # noqa: ANN401
    return found.tags[code][1] if code in found.tags else None


def _whole(found: TiffSeries, code: int, default: int) -> int:
    value = _value(found, code)
    return int(value) if isinstance(value, int) else default


def _metadata(found: TiffSeries) -> Metadata:
    texts = {name: str(_value(found, tag)) for tag, name in TEXT_TAGS.items() if _value(found, tag)}
    if found.description and not (found.imagej or found.ome_xml or found.shaped):
        texts["Description"] = found.description
    texts |= {str(k): str(v) for k, v in (found.shaped.get("texts") or {}).items()}
    unsupported = [
        f"TIFF tag {name}" for code, (name, _) in found.tags.items() if code not in _STRUCTURE | set(TEXT_TAGS)
    ]
    icc_profile = _value(found, _ICC_PROFILE)
    return Metadata(
        resolution=_resolution(found),
        icc_profile=bytes(icc_profile) if icc_profile else None,
        texts=texts,
        ome=dict(found.shaped.get("ome") or {}),
        imagej=dict(found.shaped.get("imagej") or {}),
        white_is_zero=_whole(found, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO,
        unsupported=tuple(unsupported),
    )


def _resolution(found: TiffSeries) -> Resolution | None:
    x, y = _value(found, _X_RESOLUTION), _value(found, _Y_RESOLUTION)
    pairs = [value for value in (x, y) if isinstance(value, tuple) and len(value) == 2 and all(value)]
    unit = {2: "inch", 3: "centimeter"}.get(_whole(found, _RESOLUTION_UNIT, 2), "none")
    # 1/1 without a unit is what writers put where they know nothing.
    if len(pairs) != 2 or (unit == "none" and x == y == (1, 1) and not found.imagej):
        return None
    return Resolution(Fraction(*map(int, x)), Fraction(*map(int, y)), unit)


def _alpha(found: TiffSeries) -> str | None:
    extra = _value(found, _EXTRA_SAMPLES)
    kinds = tuple(int(kind) for kind in (extra if isinstance(extra, tuple) else () if extra is None else (extra,)))
    if "S" not in found.axes or len(kinds) != 1:
        return None
    return {1: "associated", 2: "unassociated"}.get(kinds[0])


def _batch_notes(found: TiffSeries) -> tuple[str, ...]:
    batch = "".join(letter for letter in found.axes if letter not in "CSYX")
    n_planes = int(np.prod([n for a, n in zip(found.axes, found.samples.shape, strict=True) if a in batch]))
    if n_planes == 1:
        return ()
    hint = "; if they are the channels of one image, say so with --axes" if batch in ("I", "Q") else ""
    return (f"{n_planes} planes (axes {batch}) are worked on one by one{hint}",)


def _with_flavor(path: Path, found: TiffSeries, contents: Contents) -> Contents:
    metadata = contents.metadata
    if found.imagej:
        fields, record = imagej.read_fields(found.imagej)
        return replace(contents, metadata=replace(metadata, imagej=fields), record=record, flavor="imagej")
    if found.ome_xml:
        n_described = ome.n_samples_described(found.ome_xml, found.index)
        if n_described not in (None, found.samples.size):
            raise MalformedInputError(
                f"'{path}' should hold {n_described} samples as its OME description says, but holds "
                f"{found.samples.size}; it is cut short or damaged."
            )
        fields, record, lost = ome.read_fields(path, found.ome_xml, found.index)
        lost_names = tuple(f"OME element {name}" for name in lost)
        metadata = replace(metadata, ome=fields, unsupported=metadata.unsupported + lost_names)
        return replace(contents, metadata=metadata, record=record, flavor="ome")
    record = found.shaped.get(records.KEYWORD)
    return replace(contents, record=record if isinstance(record, dict) else None)


def _expanded(path: Path, found: TiffSeries, contents: Contents) -> Contents:
    """Refuse color models that are not additive, and turn palette indices into colors."""
    photometric = _whole(found, _PHOTOMETRIC, 1)
    if photometric in (_SEPARATED, _CIELAB):
        name = "CMYK" if photometric == _SEPARATED else "CIELAB"
        raise MalformedInputError(f"'{path}' should be gray, RGB or plain channels, but is {name}; convert it first.")
    if photometric != _PALETTE or "S" in contents.axes:
        return contents
    if contents.flavor != "plain":
        # Microscopists color gray values for display; the indices are the measurement.
        note = "the color table is for display only and was not applied"
        return replace(contents, notes=(*contents.notes, note))
    table = np.asarray(_value(found, _COLOR_MAP), dtype=np.uint16).reshape(3, -1)
    is_eight_bit = not (table % 257).any()
    colors = (table // 257).astype(np.uint8) if is_eight_bit else table
    samples = np.take(colors.T, np.asarray(contents.samples, dtype=np.intp), axis=0)
    note = "the palette was expanded to colors"
    return replace(
        contents, samples=samples, axes=contents.axes + "S", dtype=samples.dtype.name, notes=(*contents.notes, note)
    )
