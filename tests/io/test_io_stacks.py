"""Stacks and signals: the file or its letters decide which axes are space, and the output keeps them."""

import re

import numpy as np
import pytest
import tifffile
import torch
from io_cases import SPACING, imagej, ome

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.io import read_image

KINDS = {
    "a.ome.tif": (ome, ["ZYX", "CZYX", "TCZYX", "ZCYX"]),
    "a.tif": (imagej, ["ZYX", "ZCYX", "TZYX", "TZCYX"]),
}
STACKS = [(name, axes) for name, (_, all_axes) in KINDS.items() for axes in all_axes]
SIZES = {"T": 2, "Z": 5, "C": 3, "Y": 6, "X": 7}


@pytest.mark.parametrize(("name", "axes"), STACKS)
def test_stacks_come_back_in_their_own_format_with_all_that_they_say(tmp_path, rng, name, axes, planned):
    stored = rng.integers(0, 60000, [SIZES[a] for a in axes]).astype("uint16")
    KINDS[name][0](tmp_path / name, stored, axes)
    image = read_image(tmp_path / name).spanned_by(3)
    moved = np.moveaxis(stored, axes.index("Z"), -3)
    assert image.values.shape[-3:] == (5, 6, 7)
    np.testing.assert_array_equal(image.values.numpy().ravel(), moved.ravel())
    assert image.spacing == pytest.approx(SPACING)
    written = tmp_path / f"out_{name}"
    plan = planned(written, image)
    plan.prepare(image.values.float() + 0.5).write({"command": "test"})
    again = read_image(written)
    assert (again.axes, again.shape) == (image.axes, image.shape)
    np.testing.assert_array_equal(tifffile.imread(written), stored + 0.5)
    assert again.spanned_by(3).spacing == pytest.approx(SPACING)
    assert again.metadata.flavor == image.metadata.flavor
    assert again.metadata.channel_names == image.metadata.channel_names
    times = {"OME TimeIncrement", "ImageJ finterval"} & set(image.metadata.native)
    assert times
    assert all(again.metadata.native[field] == image.metadata.native[field] for field in times)


@pytest.mark.parametrize(
    ("missing", "spacing", "taken"),
    [
        ("X", (0.5, 0.2, 0.2), "no PhysicalSizeX, so that pixels are assumed to be square"),
        ("Z", None, "no PhysicalSizeZ, so that stacks are assumed to have equal distances along all axes"),
        ("XY", None, "no PhysicalSizeX and PhysicalSizeY, so that stacks"),
    ],
)
def test_sizes_that_an_ome_file_tells_are_kept_where_others_are_missing(tmp_path, missing, spacing, taken, planned):
    ome(tmp_path / "in.ome.tif", np.ones((5, 6, 7), "float32"), "ZYX")
    xml = tifffile.tiffcomment(tmp_path / "in.ome.tif")
    for letter in missing:
        xml = re.sub(f'PhysicalSize{letter}(Unit)?="[^"]*"', "", xml)
    tifffile.tiffcomment(tmp_path / "in.ome.tif", xml.encode())
    image = read_image(tmp_path / "in.ome.tif").spanned_by(3)
    assert image.spacing == (spacing and pytest.approx(spacing))
    assert taken in image.notes[0]
    plan = planned(tmp_path / "out.ome.tif", image)
    prepared = plan.prepare(image.values)
    prepared.write({})
    written = tifffile.tiffcomment(tmp_path / "out.ome.tif")
    told = {letter: f'PhysicalSize{letter}="{size}"' for letter, size in zip("ZYX", SPACING, strict=True)}
    assert all(text in written for letter, text in told.items() if letter not in missing)
    assert not any("PhysicalSize" in note for note in prepared.notes)


def test_one_plane_after_another_unless_a_kernel_spans_three_axes(tmp_path, rng):
    stored = rng.random((5, 6, 7)).astype("float32")
    imagej(tmp_path / "a.tif", stored, "ZYX")
    image = read_image(tmp_path / "a.tif")
    assert (image.dimensions, tuple(image.values.shape)) == (2, (5, 1, 6, 7))
    assert "a kernel of three axes works along Z too" in image.notes[-1]
    assert image.spanned_by(3).notes == ()
    assert torch.equal(image.spanned_by(3).spanned_by(2).values, image.values)
    assert image.spacing == pytest.approx(SPACING[1:])


@pytest.mark.parametrize("axes", ["TYX", "CYX"])
def test_what_is_told_to_be_time_or_channels_is_no_depth(tmp_path, rng, axes):
    imagej(tmp_path / "a.tif", rng.random((5, 6, 7)).astype("float32"), axes)
    with pytest.raises(ShapeError, match=f'spans 3 axes .ZYX., but .* axes {axes}; .*axes="ZYX"'):
        read_image(tmp_path / "a.tif").spanned_by(3)
    named = read_image(tmp_path / "a.tif", axes="ZYX").spanned_by(3)
    assert tuple(named.values.shape) == (1, 1, 5, 6, 7)


def test_pages_without_a_word_are_planes_along_z(tmp_path, rng):
    stored = rng.random((5, 6, 7)).astype("float32")
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", metadata=None)
    image = read_image(tmp_path / "a.tif").spanned_by(3)
    assert (image.axes, tuple(image.values.shape)) == ("ZYX", (1, 1, 5, 6, 7))
    assert any("read as planes along Z" in note and 'axes="TYX"' in note for note in image.notes)
    with pytest.raises(ShapeError, match="TYX"):
        read_image(tmp_path / "a.tif", axes="TYX").spanned_by(3)


@pytest.mark.parametrize(
    ("shape", "dimensions", "expected"),
    [
        *[((9,), 1, (1, 1, 9)), ((3, 9), 1, (1, 3, 9)), ((2, 3, 9), 1, (2, 3, 9))],
        *[((5, 6, 7), 3, (1, 1, 5, 6, 7)), ((2, 5, 6, 7), 3, (1, 2, 5, 6, 7)), ((3, 2, 5, 6, 7), 3, (3, 2, 5, 6, 7))],
    ],
)
def test_tensors_without_letters_are_told_by_the_kernel_and_come_back(
    tmp_path, rng, shape, dimensions, expected, planned
):
    stored = rng.random(shape)
    np.save(tmp_path / "a.npy", stored)
    image = read_image(tmp_path / "a.npy").spanned_by(dimensions)
    assert tuple(image.values.shape) == expected
    assert image.spacing is None
    plan = planned(tmp_path / "b.npy", image, n_channels=expected[1], output_dtype="float64")
    plan.prepare(image.values).write({"command": "test"})
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), stored)


def test_signals_go_into_tensors_and_into_no_picture(tmp_path, planned):
    np.save(tmp_path / "a.npy", np.ones((3, 9)))
    image = read_image(tmp_path / "a.npy", axes="CX")
    assert image.dimensions == 1
    for name in ("b.tif", "b.png"):
        with pytest.raises(UsageError, match="signals"):
            planned(tmp_path / name, image, n_channels=3)
