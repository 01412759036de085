"""Writing TIFF: plain with JSON axes, ImageJ's kind, or OME's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.io import imagej, ome, records
from deconv_cli.io.contents import Resolution
from deconv_cli.io.drafts import Draft, all_texts
from deconv_cli.io.tiff import write_array
from deconv_cli.io.tiff_reader import TEXT_TAGS

_EXTRA_SAMPLE = {"associated": 1, "unassociated": 2}
_ASCII = 2


def choose_kind(draft: Draft, *, wants_ome: bool, flavor: str) -> str:
    """Choose `ome`, `imagej` or `shaped` (plain with JSON axes).

    Args:
        draft: what is to be written.
        wants_ome: the name of the file asks for OME.
        flavor: what the source was.
    """
    if wants_ome:
        return "ome"
    fits = draft.alpha is None and imagej.fits(draft.axes, draft.array.dtype.name, draft.array.nbytes)
    return "imagej" if flavor == "imagej" and fits else "shaped"


def lost_names(draft: Draft, kind: str) -> list[str]:
    """Name what the source says about itself and this kind of TIFF cannot hold."""
    metadata = draft.metadata
    _, lost = _fields(draft, kind)
    if metadata.icc_profile and not draft.same_channels:
        lost.append("ICC profile (it is for other channels)")
    if metadata.exif:
        lost.append("EXIF beyond " + ", ".join(TEXT_TAGS.values()))
    if kind != "shaped":
        lost += [f"text {name}" for name in _other_texts(draft) if not (kind == "ome" and name == "Description")]
    return lost + [f"PNG chunk {name.decode()}" for name, _ in metadata.png_chunks]


def write_tiff(path: Path, kind: str, draft: Draft, encoded_record: str) -> None:
    """Write a TIFF file of one kind with its record."""
    fields, _ = _fields(draft, kind)
    if kind == "imagej":
        fields = imagej.with_record(fields, encoded_record)
    elif kind == "ome":
        fields = ome.with_record(fields, encoded_record)
    else:
        fields = {**fields, records.KEYWORD: json.loads(encoded_record)}
    options = {
        **_sample_options(draft),
        **_resolution_options(draft.metadata.resolution),
        "metadata": {"axes": draft.axes, **fields},
        "iccprofile": draft.metadata.icc_profile if draft.same_channels else None,
        "extratags": _text_tags(draft),
        # ImageJ maps its stacks straight from the disk, which only uncompressed samples allow.
        "compression": None if kind == "imagej" else "zlib",
    }
    write_array(path, np.ascontiguousarray(draft.array), kind, options)


def _fields(draft: Draft, kind: str) -> tuple[dict[str, Any], list[str]]:
    """Gather the fields of the description, and the names of those it has no room for."""
    metadata = draft.metadata
    own_imagej, lost_imagej = imagej.fields_for(metadata.imagej, same_channels=draft.same_channels)
    own_ome, lost_ome = ome.fields_for(metadata.ome, same_channels=draft.same_channels)
    lost = [f"ImageJ {name}" for name in lost_imagej] + [f"OME {name}" for name in lost_ome]
    if kind == "imagej":
        return own_imagej, lost + [f"OME {name}" for name in own_ome]
    if kind == "ome":
        translated, untold = imagej.as_ome(own_imagej, _per_unit(metadata.resolution))
        description = metadata.texts.get("Description")
        base = {
            **_physical_size(metadata.resolution),
            **translated,
            **({"Description": description} if description else {}),
        }
        return {**base, **own_ome}, lost + [f"ImageJ {name}" for name in untold]
    kept_imagej = {name: _plain(value) for name, value in own_imagej.items() if not isinstance(value, bytes)}
    lost += [f"ImageJ {name}" for name in own_imagej if name not in kept_imagej]
    parts = {"imagej": kept_imagej, "ome": own_ome, "texts": _other_texts(draft)}
    return {name: part for name, part in parts.items() if part}, lost


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Turn arrays and tuples into what JSON knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _sample_options(draft: Draft) -> dict[str, Any]:
    # Unless told otherwise, tifffile takes any three planes for colors.
    is_color = draft.n_colors in (3, 4)
    gray = "miniswhite" if draft.metadata.white_is_zero else "minisblack"
    options: dict[str, Any] = {"photometric": "rgb" if is_color else gray}
    n_samples = draft.array.shape[draft.axes.index("S")] if "S" in draft.axes else 1
    if n_samples > 1:
        options["planarconfig"] = "contig" if draft.axes.endswith("S") else "separate"
        n_extra = n_samples - (3 if is_color else 1)
        extra = [0] * n_extra
        if draft.alpha is not None:
            extra[-1] = _EXTRA_SAMPLE[draft.alpha]
        if extra:
            options["extrasamples"] = extra
    return options


def _resolution_options(resolution: Resolution | None) -> dict[str, Any]:
    if resolution is None:
        return {}
    pairs = tuple((value.numerator, value.denominator) for value in (resolution.x, resolution.y))
    return {"resolution": pairs, "resolutionunit": resolution.unit}


def _per_unit(resolution: Resolution | None) -> tuple[float, float] | None:
    return None if resolution is None else (float(resolution.x), float(resolution.y))


def _physical_size(resolution: Resolution | None) -> dict[str, Any]:
    unit = {"inch": "in", "centimeter": "cm"}.get(resolution.unit) if resolution else None
    if resolution is None or unit is None:
        return {}
    return {
        "PhysicalSizeX": float(1 / resolution.x),
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": float(1 / resolution.y),
        "PhysicalSizeYUnit": unit,
    }


def _other_texts(draft: Draft) -> dict[str, str]:
    return {name: text for name, text in all_texts(draft.metadata).items() if name not in TEXT_TAGS.values()}


def _text_tags(draft: Draft) -> list[tuple[int, int, int, bytes, bool]]:
    texts = draft.metadata.texts
    return [(code, _ASCII, 0, texts[name].encode("utf-8"), True) for code, name in TEXT_TAGS.items() if name in texts]
