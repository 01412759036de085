"""TIFF by parts: what is read is what tifffile reads as a whole, and what is written in parts is one whole file."""

import pickle
import tracemalloc

import numpy as np
import pytest
import tifffile
from region_cases import planned, some_regions, write_all

from deconv_cli.errors import MalformedInputError, TooLargeError
from deconv_cli.io import limits, read_image
from deconv_cli.io.layout import Layout
from deconv_cli.io.output import plan_regions
from deconv_cli.io.regions import open_regions

STACK = np.random.default_rng(4).random((3, 2, 70, 90)).astype("float32")
PLANE = STACK[0, 0]
COLORS = (255 * STACK[0, 0, :, :, None] * [1, 0.5, 0.2]).astype("uint8")
TZYX = {"photometric": "minisblack", "metadata": {"axes": "TZYX"}}

FILES = {
    "tiles": (PLANE, {"tile": (16, 32)}),
    "tiles with a predictor": (PLANE, {"tile": (32, 16), "compression": "zlib", "predictor": True}),
    "strips": (PLANE, {"rowsperstrip": 7}),
    "strips in LZW": (PLANE, {"rowsperstrip": 7, "compression": "lzw"}),
    "colors in JPEG tiles": (COLORS, {"tile": (32, 32), "compression": "jpeg", "photometric": "rgb"}),
    "colors in JPEG strips": (COLORS, {"rowsperstrip": 16, "compression": "jpeg", "photometric": "rgb"}),
    "colors apart": (
        np.ascontiguousarray(np.moveaxis(COLORS, -1, 0)),
        {"tile": (32, 32), "compression": "zlib", "photometric": "rgb", "planarconfig": "separate"},
    ),
    "high byte first": (STACK, {"byteorder": ">", **TZYX}),
    "tiles, high byte first": (STACK, {"byteorder": ">", "tile": (32, 16), "compression": "zlib", **TZYX}),
    "ImageJ": ((1000 * STACK).astype("uint16"), {"imagej": True, "metadata": {"axes": "TZYX"}}),
    "OME": (STACK, {"ome": True, "tile": (32, 32), "compression": "zlib", **TZYX}),
    "pages": (STACK[0], {"photometric": "minisblack", "metadata": None}),
    "tiles with depth": (STACK.reshape(6, 70, 90).repeat(4, 0), {"tile": (16, 16, 32), "volumetric": True, **TZYX}),
    "bits": (PLANE > 0.5, {"photometric": "minisblack"}),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_part_is_what_the_whole_file_has_there(tmp_path, kind):
    samples, options = FILES[kind]
    options = {**options, "metadata": None} if options.get("volumetric") else options
    tifffile.imwrite(tmp_path / "a.tif", samples, **options)
    whole = tifffile.imread(tmp_path / "a.tif")
    source = pickle.loads(pickle.dumps(open_regions(tmp_path / "a.tif")))
    assert source.shape == whole.shape
    assert source.dtype == whole.dtype.name
    assert len(source.chunk) == whole.ndim
    for region in some_regions(source.shape, 6):
        part = source.read(region)
        assert part.dtype.isnative
        np.testing.assert_array_equal(part, whole[region])


def test_of_a_pyramid_the_full_resolution_is_taken(tmp_path):
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (32, 32), "photometric": "rgb", "compression": "jpeg"}
        writer.write(COLORS, subifds=2, **options)
        writer.write(COLORS[::2, ::2], subfiletype=1, **options)
        writer.write(COLORS[::4, ::4], subfiletype=1, **options)
    source = open_regions(path)
    assert source.shape == COLORS.shape
    assert "full resolution was read" in source.notes[0]
    np.testing.assert_array_equal(source.read(tuple(slice(0, n) for n in source.shape)), tifffile.imread(path))


def test_reading_a_part_takes_no_more_memory_than_the_part_and_a_tile(tmp_path):
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, np.ones((4096, 4096), "uint8"), tile=(256, 256), compression="zlib")
    source = open_regions(path)
    tracemalloc.start()
    part = source.read((slice(1000, 1300), slice(2000, 2300)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part.all()
    assert peak < 2**20


def test_a_file_larger_than_the_memory_is_read_unless_one_strip_of_it_is(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    monkeypatch.setattr(limits, "memory_budget", lambda: 8000)
    for options in (
        {"tile": (16, 32), "compression": "zlib"},
        {"rowsperstrip": 70},
        {"rowsperstrip": 20, "compression": "lzw"},
    ):
        tifffile.imwrite(path, PLANE, **options)
        with pytest.raises(TooLargeError):
            read_image(path)
        np.testing.assert_array_equal(open_regions(path).read((slice(3, 9), slice(1, 40))), PLANE[3:9, 1:40])
    tifffile.imwrite(path, PLANE, rowsperstrip=70, compression="zlib")
    with pytest.raises(TooLargeError):
        open_regions(path)


@pytest.mark.parametrize("kind", ["strips", "tiles with a predictor", "OME", "ImageJ"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind):
    samples, options = FILES[kind]
    whole, path = tmp_path / "whole.tif", tmp_path / "cut.tif"
    tifffile.imwrite(whole, samples, **options)
    content = whole.read_bytes()
    for share in (0.3, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(MalformedInputError):
            open_regions(path)


def test_what_needs_more_than_its_samples_is_not_read_by_parts(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.dstack([COLORS, COLORS[..., 0]]), photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(MalformedInputError, match="alpha channel"):
        open_regions(path)
    tifffile.imwrite(path, COLORS[..., 0], photometric="palette", colormap=np.zeros((3, 256), "uint16"))
    with pytest.raises(MalformedInputError, match="palette"):
        open_regions(path)
    tifffile.imwrite(path, PLANE, extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(MalformedInputError, match="orientation 6"):
        open_regions(path)
    tifffile.imwrite(path, PLANE + 1j, photometric="minisblack")
    with pytest.raises(MalformedInputError, match="complex64"):
        open_regions(path)


SOURCES = {
    "plain": (np.pad(PLANE, ((0, 700), (0, 20))), {}),
    "colors": (COLORS, {"photometric": "rgb", "iccprofile": b"profile" * 20}),
    "colors apart": FILES["colors apart"],
    "ome": (STACK, {"ome": True, **TZYX}),
    "imagej": FILES["ImageJ"],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_parts_become_one_file(tmp_path, kind):
    samples, options = SOURCES[kind]
    tifffile.imwrite(tmp_path / "a.tif", samples, **options)
    source = open_regions(tmp_path / "a.tif")
    path = tmp_path / "out.tif"
    target = planned(source, path, output_dtype=samples.dtype.name)
    target.create()
    write_all(target, samples)
    assert not path.exists()
    target.finish({"command": "invert", "note": 'less < & "quoted" é'})
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    np.testing.assert_array_equal(tifffile.imread(path), samples)
    written = read_image(path)
    assert written.axes == target.axes
    assert written.record["note"] == 'less < & "quoted" é'
    assert written.record["output"] == {"shape": list(samples.shape), "dtype": samples.dtype.name}
    with tifffile.TiffFile(path) as opened:
        assert opened.is_bigtiff
        assert opened.pages[0].is_tiled
        assert opened.is_ome == (kind == "ome")
        assert opened.pages[0].iccprofile == options.get("iccprofile")


def test_ome_metadata_come_along(tmp_path, ome_file):
    source = open_regions(ome_file)
    target = planned(source, tmp_path / "out.ome.tif")
    assert not target.create()
    assert target.create()  # a new one would have another identifier
    target.finish({"command": "invert"})
    before, after = read_image(ome_file), read_image(tmp_path / "out.ome.tif")
    assert after.metadata.channel_names == ("DAPI", "GFP", "RFP")
    assert after.metadata == before.metadata
    assert after.spacing == before.spacing
    assert target.notes == ()


def test_an_unfinished_file_of_the_same_size_but_with_other_metadata_is_made_anew(tmp_path):
    for dots in (300, 400):
        tifffile.imwrite(tmp_path / "a.tif", PLANE, resolution=(dots, dots), resolutionunit="inch")
        target = planned(open_regions(tmp_path / "a.tif"), tmp_path / "out.tif")
        assert not target.create()
    write_all(target, PLANE)
    target.finish({})
    assert read_image(tmp_path / "out.tif").metadata.density.x == 400


def test_what_an_earlier_run_wrote_is_kept_but_not_a_file_of_another_shape(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PLANE)
    source = open_regions(tmp_path / "a.tif")
    target = planned(source, tmp_path / "out.tif")
    target.create()
    write_all(target, PLANE)
    target.create()
    hidden = next(tmp_path.glob(".*.partial"))
    # A run that ended while it made the file.
    np.testing.assert_array_equal(tifffile.imread(hidden), PLANE)
    other = plan_regions(
        tmp_path / "out.tif", source, Layout("YX", source.shape), n_channels=1, size=(60, 90), output_dtype="float32"
    )
    other.create()
    assert tifffile.imread(hidden).shape == (60, 90)
    hidden.write_bytes(hidden.read_bytes()[:-40])
    other.create()
    assert not tifffile.imread(hidden).any()
    other.discard()
    other.discard()
    assert not hidden.exists()
