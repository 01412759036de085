"""Which tone curve a file follows: that of its ICC profile, of its gamma, sRGB, or none."""

import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from deconv_cli.io import read_image
from deconv_cli.io.color_profile import profile_curve

P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
"""Colorants of Display P3, in XYZ under D50."""
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def srgb(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def number(value):
    return struct.pack(">i", round(value * 65536))


def gamma_tag(exponent):
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256))


SRGB_TAG = b"para" + bytes(4) + struct.pack(">HH", 3, 0)
SRGB_TAG += b"".join(map(number, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))


def icc_profile(title, curves, colorants=None):
    """Write a profile of version 2 (for parametric curves, 4) for RGB, or without colorants for gray."""
    text = title.encode()
    tags = [(b"desc", b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67))]
    tags += [(b"wtpt", b"XYZ " + bytes(4) + number(0.9642) + number(1) + number(0.8249))]
    if colorants is None:
        tags += [(b"kTRC", curves[0])]
    else:
        named = zip(b"rgb", colorants, curves, strict=True)
        for letter, colorant, curve in named:
            tags += [(bytes([letter]) + b"XYZ", b"XYZ " + bytes(4) + b"".join(map(number, colorant)))]
            tags += [(bytes([letter]) + b"TRC", curve)]
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags:
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    space = b"GRAY" if colorants is None else b"RGB "
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    header = header.ljust(68, b"\0") + number(0.9642) + number(1) + number(0.8249)
    return header.ljust(128, b"\0") + table + body


PROFILES = {
    "AdobeRGB-like": (icc_profile("AdobeRGB-like", [gamma_tag(2.19921875)] * 3, ADOBE), lambda v: v**2.19921875),
    "Display P3": (icc_profile("Display P3", [SRGB_TAG] * 3, P3), srgb),
    "linear": (icc_profile("linear", [gamma_tag(1)] * 3, P3), lambda v: v),
    "gray 1.8": (icc_profile("gray 1.8", [gamma_tag(1.80078125)]), lambda v: v**1.80078125),
    "sRGB built-in": (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), srgb),
}


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("white", [255, 65535])
@pytest.mark.parametrize("name", PROFILES)
def test_the_curve_of_a_profile_is_found(name, white, n_channels):
    icc, formula = PROFILES[name]
    curve = profile_curve(icc, white, n_channels)
    assert curve.name == f'the ICC profile "{name}"'
    stored = torch.arange(white + 1, dtype=torch.float64).expand(n_channels, 1, -1)
    light = curve.to_light(stored)
    assert np.abs(light[0, 0].numpy() / white - formula(np.arange(white + 1) / white)).max() < 1e-4
    assert (curve.to_stored(light) - stored).abs().max() < 1e-6
    assert (curve.to_stored(curve.to_light(stored.float())) - stored).abs().max() < 0.05


@pytest.fixture
def colors():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_the_profile_of_a_file_is_read(tmp_path, colors, suffix):
    path = tmp_path / f"p3{suffix}"
    Image.fromarray(colors).save(path, icc_profile=PROFILES["Display P3"][0])
    curve = read_image(path).tone_curve
    assert (curve.name, curve.origin, curve.white) == ('the ICC profile "Display P3"', "embedded in the file", 255)
    assert curve.is_default


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif", ".bmp", ".gif"])
def test_pictures_without_a_profile_are_srgb(tmp_path, colors, suffix):
    Image.fromarray(colors).save(tmp_path / f"plain{suffix}")
    curve = read_image(tmp_path / f"plain{suffix}").tone_curve
    assert (curve.name, curve.white, curve.is_default) == ("sRGB", 255, True)


def test_the_gamma_of_a_png_file_is_read_unless_it_says_srgb(tmp_path, colors):
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", 55556))
    Image.fromarray(colors).save(tmp_path / "gamma.png", pnginfo=info)
    curve = read_image(tmp_path / "gamma.png").tone_curve
    assert (curve.name, curve.origin) == ("gamma 1.8", "named in the file")
    info.add(b"sRGB", b"\0")
    Image.fromarray(colors).save(tmp_path / "both.png", pnginfo=info)
    assert read_image(tmp_path / "both.png").tone_curve.name == "sRGB"


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_tiff_file_without_a_profile_is_srgb_only_if_asked(tmp_path, colors, dtype):
    tifffile.imwrite(tmp_path / "plain.tif", colors.astype(dtype), photometric="rgb")
    curve = read_image(tmp_path / "plain.tif").tone_curve
    assert curve.name == "sRGB"
    assert not curve.is_default


def test_floats_stacks_and_tensors_have_no_curve(tmp_path, colors):
    tifffile.imwrite(tmp_path / "float.tif", colors.astype(np.float32), photometric="rgb")
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((5, 8, 9), np.uint8), imagej=True, metadata={"axes": "CYX"})
    np.save(tmp_path / "tensor.npy", colors)
    for name in ("float.tif", "five.tif", "tensor.npy"):
        assert read_image(tmp_path / name).tone_curve is None


def test_a_profile_that_cannot_be_read_is_said(tmp_path, colors):
    Image.fromarray(colors).save(tmp_path / "broken.png", icc_profile=b"no profile at all" * 20)
    curve = read_image(tmp_path / "broken.png").tone_curve
    assert (curve.name, curve.origin) == ("sRGB", "since the ICC profile of the file cannot be read")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert profile_curve(lab, 255, 3) is None
    assert profile_curve(PROFILES["Display P3"][0][:200], 255, 3) is None
