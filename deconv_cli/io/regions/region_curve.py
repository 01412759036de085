"""How the samples of a large array encode light."""

from __future__ import annotations

from deconv_cli.io.color_profile import recorded_curve, tone_curve_of_file
from deconv_cli.io.formats import all_codecs
from deconv_cli.io.regions.region_source import RegionSource
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import Light


def tone_curve_of_region(source: RegionSource, n_channels: int) -> ToneCurve | None:
    """Find the curve that `deconv forward` recorded, else what the file says of itself; `None` if unknown.

    Args:
        source: the array.
        n_channels: alpha not counted.
    """
    record = source.record or {}
    if record.get("command") == "forward" and record.get("light") == Light.LINEAR:
        return recorded_curve(record.get("tone_curve"), source.metadata, n_channels)
    codec = next((codec for codec in all_codecs() if codec.name == source.format_name), None)
    return None if codec is None else tone_curve_of_file(codec, source.metadata, source.dtype, n_channels)
