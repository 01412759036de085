"""Arrays in .npy files by parts; nothing half-written has the name of a result."""

import numpy as np
import pytest
import tifffile
from region_cases import planned

from deconv_cli.errors import FileAccessError, MalformedInputError, UnsafeInputError, UsageError
from deconv_cli.io import read_image, records, region_arrays
from deconv_cli.io.codecs.npy import NPY, NpyTarget
from deconv_cli.io.layout import Layout
from deconv_cli.io.output import plan_regions
from deconv_cli.io.regions import open_regions

REGION = (slice(1, 3), slice(0, 5), slice(4, 9))


def target_in(folder, dtype="float32"):
    return NpyTarget(path=folder / "out.npy", shape=(4, 5, 9), dtype=dtype, axes="ZYX", unit=(1, 1, 1))


@pytest.mark.parametrize("dtype", ["float32", ">u2", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_part_is_read_as_it_is_stored(tmp_path, rng, dtype, order):
    stored = np.asarray(rng.integers(0, 2, (4, 5, 9)), dtype=dtype, order=order)
    np.save(tmp_path / "in.npy", stored)
    source = NPY.open_regions(tmp_path / "in.npy", None)
    found = source.read(REGION)
    assert (source.shape, source.dtype) == ((4, 5, 9), stored.dtype.newbyteorder("=").name)
    assert source.chunk == ((1, 1, 9) if order == "C" else (4, 1, 1))
    assert found.dtype.isnative
    assert np.array_equal(found, stored[REGION])


def test_what_is_no_array_of_numbers_is_refused_before_any_sample_is_read(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeInputError):
        NPY.open_regions(tmp_path / "objects.npy", None)
    np.save(tmp_path / "short.npy", np.zeros((100, 100)))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:5000])
    with pytest.raises(MalformedInputError, match="promises an array"):
        NPY.open_regions(tmp_path / "short.npy", None)


def test_parts_in_any_order_make_the_file_that_numpy_makes(tmp_path, rng):
    samples = rng.random((4, 5, 9)).astype("float32")
    target = target_in(tmp_path)
    target.create()
    for plane in (2, 0, 3, 1, 0):
        region = (slice(plane, plane + 1), slice(0, 5), slice(0, 9))
        target.write(region, samples[region])
        target.create()  # keeps the existing data
        assert not target.path.exists()
    target.finish({"command": "invert"})
    assert np.array_equal(np.load(target.path), samples)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "out.npy.json"]
    record = read_image(target.path).record
    assert record is not None
    assert record["output"]["samples_sha256"] == records.samples_digest(samples)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_what_is_left_of_another_array_is_made_anew(tmp_path, dtype):
    target_in(tmp_path, dtype).create()
    target = target_in(tmp_path)
    assert not target.create()
    assert target.create()
    target.write((slice(3, 4), slice(0, 5), slice(0, 9)), np.ones((1, 5, 9), "float32"))
    target.discard()
    target.discard()
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(region_arrays.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(FileAccessError, match="has 100"):
        target_in(tmp_path).create()
    assert not [*tmp_path.iterdir()]


def test_a_target_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(FileAccessError, match="cannot be written"):
        target_in(tmp_path / "missing").create()


def test_a_picture_becomes_an_array_in_the_order_of_tensors(tmp_path, imagej_file):
    source = open_regions(imagej_file)
    layout = Layout(source.axes, source.shape, 3)
    target = plan_regions(tmp_path / "out.npy", source, layout, n_channels=2, size=(3, 16, 20))
    assert (target.axes, target.shape) == ("BCZYX", (2, 2, 3, 16, 20))
    assert "ImageJ Info" in target.notes[-1]
    target.create()
    target.finish({})
    assert read_image(tmp_path / "out.npy").shape == target.shape
    found = open_regions(tmp_path / "out.npy", axes="tczyx")
    assert (found.axes, found.shape) == ("TCZYX", target.shape)
    with pytest.raises(UsageError, match="name 2 axes"):
        open_regions(tmp_path / "out.npy", axes="YX")
    with pytest.raises(UsageError, match="leave out tensor"):
        open_regions(tmp_path / "out.npy", tensor="image")


@pytest.mark.parametrize(("place", "step"), [(region_arrays.atomic, "name_new"), (region_arrays, "remove")])
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr"])
def test_the_first_of_two_that_make_room_wins(tmp_path, monkeypatch, suffix, place, step):
    samples = np.random.default_rng(2).random((64, 48)).astype("float32")
    tifffile.imwrite(tmp_path / "in.tif", samples, tile=(32, 16))
    target = planned(open_regions(tmp_path / "in.tif"), tmp_path / f"out{suffix}")
    do_step = getattr(place, step)

    def other_is_quicker(*paths):
        monkeypatch.setattr(place, step, do_step)
        target.create()
        target.write((slice(0, 64), slice(0, 48)), samples)
        do_step(*paths)

    monkeypatch.setattr(place, step, other_is_quicker)
    target.create()
    target.finish({})
    found = open_regions(target.path).read((slice(0, 64), slice(0, 48)))
    np.testing.assert_array_equal(found, samples)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
