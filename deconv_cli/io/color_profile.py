"""The tone curve of the samples of a file: from its ICC profile, its gamma, or sRGB.

LittleCMS, by imagecodecs, reads the profile; its curves are sampled at the 256 values of 8 bits.
"""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.io.codec import Codec
from deconv_cli.io.metadata import Metadata
from deconv_cli.tone_curve import WHITES, ToneCurve

_GAMMA, _SRGB_CHUNK = "PNG chunk gAMA", "PNG chunk sRGB"
_SRGB = "sRGB"
_ICC = "the ICC profile"
_ALIKE = 1e-3
"""Curves of colors that differ by less than this part of white count as gray; 16 bits resolve blue no better."""
_LEAST_RISE = 1e-7
"""Between two of 256 values, so that a flat piece of a curve has an inverse."""


def tone_curve_of_file(codec: Codec, metadata: Metadata, dtype: str, n_channels: int) -> ToneCurve | None:
    """Find the tone curve of samples of a NumPy type in a file of a format.

    Returns:
        The curve. `None` for tensors, and for samples that are neither gray nor three colors of 8 or 16 bits: they are
        counts or floats, which are linear in light. The curve of a TIFF file without a profile is sRGB, but not the
        default, since instruments write such files.
    """
    white = WHITES.get(dtype)
    if white is None or not codec.is_picture or n_channels not in (1, 3):
        return None
    if metadata.icc_profile is not None:
        found = profile_curve(metadata.icc_profile, white, n_channels)
        return found or replace(ToneCurve.srgb(white), origin="since the ICC profile of the file cannot be read")
    gamma = None if _SRGB_CHUNK in metadata.native else _of_gamma(metadata.native.get(_GAMMA), white)
    if gamma is not None:
        return gamma
    is_default = codec.holds_whole_numbers_only  # such formats are made for display
    return replace(ToneCurve.srgb(white), origin="the file names no curve", is_default=is_default)


def recorded_curve(described: object, metadata: Metadata, n_channels: int) -> ToneCurve | None:
    """Rebuild the curve that `deconv forward` recorded; `None` if the file alone does not determine it."""
    if not isinstance(described, dict):
        return None
    name, white = described.get("name"), described.get("white")
    if not isinstance(name, str) or not isinstance(white, int | float) or not 0 < white < float("inf"):
        return None
    if name.startswith(_ICC):
        icc_profile = metadata.icc_profile
        return None if icc_profile is None else profile_curve(icc_profile, float(white), n_channels)
    try:
        exponent = float(name.removeprefix("gamma "))
        curve = ToneCurve.gamma(exponent, white)
    except (ValueError, UsageError):
        if name != _SRGB:
            return None
        curve = ToneCurve.srgb(white)
    return replace(curve, origin="")


def profile_curve(icc_profile: bytes, white: float, n_channels: int) -> ToneCurve | None:
    """Sample the curves of an ICC profile for samples up to `white`, of 1 or 3 channels.

    One channel of a profile for colors has equal red, green and blue. Returns `None` for a profile that LittleCMS
    cannot read, or that is neither for gray nor for RGB.
    """
    from imagecodecs import CmsError
    from PIL import ImageCms

    try:
        title = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))).strip()
        light = _sample(icc_profile, n_channels)
    except (CmsError, ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    named = f'{_ICC} "{title}"' if title else _ICC
    return None if light is None else ToneCurve(light, white, named, "embedded in the file")


def _sample(icc_profile: bytes, n_channels: int) -> Tensor | None:
    """Sample light over 256 stored values, shape `(n, 256)`; `None` if the profile has no such curve."""
    import imagecodecs

    space = {b"RGB ": "rgb", b"GRAY": "gray"}.get(icc_profile[16:20])  # ICC.1:2010, section 7.2
    if space is None:
        return None
    values = np.arange(256, dtype=np.uint8)
    if space == "gray":
        ramps = values[None]
    else:
        ramps = np.zeros((4, 256, 3), dtype=np.uint8)  # gray, red, green, blue
        ramps[0] = values[:, None]
        ramps[range(1, 4), :, range(3)] = values
    light = imagecodecs.cms_transform(
        ramps,
        icc_profile,
        imagecodecs.cms_profile("gray", gamma=1.0),
        colorspace=space,
        outcolorspace="gray",
        outdtype="float64",
        intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
        flags=imagecodecs.CMS.FLAGS.NOOPTIMIZE,  # which would go through a coarse table
    )
    light = np.maximum.accumulate(light - light[:, :1], axis=1)
    light += _LEAST_RISE * np.arange(256) * light[:, -1:]
    if not (light[:, -1] > 0).all():
        return None
    light /= light[:, -1:]
    are_alike = space == "gray" or n_channels == 1 or np.abs(light[1:] - light[0]).max() < _ALIKE
    return torch.from_numpy(light[:1] if are_alike else light[1:])


def _of_gamma(chunk: object, white: float) -> ToneCurve | None:
    """Read a gAMA chunk: 100000 / exponent (PNG, third edition, section 11.3.2.2)."""
    if not isinstance(chunk, bytes) or len(chunk) != 4:
        return None
    (inverse,) = struct.unpack(">I", chunk)
    try:
        return replace(ToneCurve.gamma(round(100_000 / max(inverse, 1), 4), white), origin="named in the file")
    except UsageError:
        return None
