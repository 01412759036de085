"""OME-Zarr: what the package ome-zarr wrote is read, and what is written is valid by the package ome-zarr-models."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from region_cases import planned, write_all

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import read_image
from deconv_cli.io.regions import open_regions

zarr = pytest.importorskip("zarr")
SAMPLES = Path(__file__).parents[1] / "fixtures" / "ome_zarr"
IMAGE = np.arange(2 * 3 * 20 * 26, dtype="uint16").reshape(2, 3, 20, 26) ** 2 % 1009
SPACING = (0.5, 0.25, 0.125)


def check_valid(path):
    """Let the independent package read an image and all of its arrays."""
    models = pytest.importorskip("ome_zarr_models.v05.image")
    omero = pytest.importorskip("ome_zarr_models.common.omero")
    described = models.Image.from_zarr(zarr.open_group(path, mode="r"))
    shown = getattr(described.ome_attributes, "omero", None)
    return [] if shown is None else omero.Omero.model_validate(shown).channels


@pytest.fixture(params=["v05", pytest.param("v04", marks=pytest.mark.exhaustive)])
def sample(request):
    return SAMPLES / f"{request.param}.ome.zarr"


@pytest.mark.parametrize("sample", [SAMPLES / "v04.ome.zarr", SAMPLES / "v05.ome.zarr"], ids=lambda path: path.name)
def test_an_image_of_another_program_is_read_as_a_whole_and_by_parts(sample):
    image = read_image(sample).spanned_by(3)
    assert (image.axes, image.dtype) == ("CZYX", "uint16")
    assert image.spacing == SPACING
    assert image.metadata.channel_names == ("DAPI", "GFP")
    assert image.metadata.native == {"OME-Zarr name": "pollen"}
    assert "smaller levels: 1" in image.notes[0]
    np.testing.assert_array_equal(image.values[0].numpy(), IMAGE)
    source = open_regions(sample)
    assert (source.shape, source.axes, source.chunk) == (IMAGE.shape, "CZYX", (1, 2, 20, 26))
    assert source.metadata == image.metadata
    np.testing.assert_array_equal(
        source.read((slice(1, 2), slice(0, 3), slice(4, 9), slice(7, 26))), IMAGE[1:, :, 4:9, 7:]
    )
    with pytest.raises(UsageError, match="series 0 to 0"):
        open_regions(sample, series=1)
    assert open_regions(sample / "s1").shape == (2, 3, 10, 13)


def test_an_image_comes_back_whole_with_all_that_was_said_of_it(sample, tmp_path, rewrite):
    prepared, written = rewrite(sample, tmp_path / "out.zarr", output_dtype="uint16")
    before = read_image(sample)
    assert prepared.notes == ("rounded to uint16, no sample clipped",)
    assert written.metadata.density == before.metadata.density
    assert written.metadata.channel_names == before.metadata.channel_names
    assert written.metadata.native == before.metadata.native
    assert written.record["command"] == "invert"
    np.testing.assert_array_equal(written.values, before.values)
    check_valid(tmp_path / "out.zarr")


def written_multiscale(path):
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]


def test_parts_become_an_image(sample, tmp_path):
    path = tmp_path / "out.ome.zarr"
    target = planned(open_regions(sample), path, dimensions=3, output_dtype="float32")
    assert (target.axes, target.shape, target.unit) == ("CZYX", IMAGE.shape, (1, 2, 20, 26))
    target.create()
    group = tmp_path / ".out.ome.zarr.partial" / "zarr.json"
    group.write_bytes(group.read_bytes()[:9])  # by a process that was killed as it wrote
    assert not target.create()
    write_all(target, IMAGE.astype("float32"))
    assert target.create()
    target.finish({"command": "invert"})
    windows = [(channel.window.start, channel.window.end) for channel in check_valid(path)]
    assert windows == [(channel[:2].min(), channel[:2].max()) for channel in IMAGE]
    assert zarr.open_array(path / "0", mode="r").metadata.dimension_names == ("c", "z", "y", "x")
    image = read_image(path).spanned_by(3)
    assert image.spacing == SPACING
    assert image.record["output"]["shape"] == list(IMAGE.shape)


def test_a_microscope_file_keeps_distances_and_names(tmp_path, ome_file, rewrite):
    prepared, written = rewrite(ome_file, tmp_path / "out.ome.zarr")
    before = read_image(ome_file)
    assert (written.axes, written.shape) == (before.axes, before.shape)
    assert written.spacing == before.spacing
    assert written.metadata.channel_names == ("DAPI", "GFP", "RFP")
    assert "OME TimeIncrement" in prepared.notes[-1]
    np.testing.assert_array_equal(written.values, before.values)
    check_valid(tmp_path / "out.ome.zarr")
    _, back = rewrite(tmp_path / "out.ome.zarr", tmp_path / "back.ome.tif")
    assert back.spacing == before.spacing
    assert back.metadata.channel_names == ("DAPI", "GFP", "RFP")


def test_colors_become_channels_and_pages_times(tmp_path, rewrite, rng):
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 255, (20, 30, 3), "uint8"), photometric="rgb")
    _, written = rewrite(tmp_path / "a.tif", tmp_path / "a.zarr")
    assert (written.axes, written.shape) == ("CYX", (3, 20, 30))
    np.testing.assert_array_equal(written.values, read_image(tmp_path / "a.tif").values)
    check_valid(tmp_path / "a.zarr")
    tifffile.imwrite(tmp_path / "b.tif", rng.random((4, 20, 30)), photometric="minisblack", metadata=None)
    prepared, written = rewrite(tmp_path / "b.tif", tmp_path / "b.zarr")
    assert written.axes == "TYX"
    assert "a batch axis was named T" in prepared.notes
    check_valid(tmp_path / "b.zarr")


def test_a_tensor_becomes_a_bare_array_unless_the_name_asks_for_an_image(tmp_path, rewrite, rng):
    np.save(tmp_path / "a.npy", rng.random((2, 3, 16, 20)))
    _, written = rewrite(tmp_path / "a.npy", tmp_path / "a.zarr", output_dtype="float64")
    assert zarr.open(tmp_path / "a.zarr", mode="r").metadata.dimension_names == ("b", "c", "y", "x")
    assert written.axes == "BCYX"
    np.testing.assert_array_equal(written.values, read_image(tmp_path / "a.npy").values)
    _, written = rewrite(tmp_path / "a.npy", tmp_path / "a.ome.zarr")
    assert written.axes == "TCYX"
    check_valid(tmp_path / "a.ome.zarr")


def test_time_steps_and_units_come_along(tmp_path, rewrite):
    path = tmp_path / "a.ome.zarr"
    axes = [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "y", "type": "space", "unit": "nanometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    one = {"type": "scale", "scale": [2.0, 250.0, 0.5]}
    moved = {"type": "translation", "translation": [4.0, 100.0, 3.0]}
    multiscale = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [one, moved]}]}
    multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [0.5, 1.0, 1.0]}]
    group = zarr.create_group(store=path, attributes={"ome": {"version": "0.5", "multiscales": [multiscale]}})
    group.create_array(name="0", shape=(3, 8, 9), dtype="uint8", dimension_names=["t", "y", "x"])[...] = 1
    prepared, written = rewrite(path, tmp_path / "out.ome.zarr")
    assert written.spacing == (0.25, 0.5)
    assert "OME-Zarr translation" in prepared.notes[-1]
    found = written_multiscale(tmp_path / "out.ome.zarr")
    assert found["axes"] == [axes[0], {**axes[1], "unit": "micrometer"}, axes[2]]
    (scale,) = found["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [1.0, 0.25, 0.5]
    check_valid(tmp_path / "out.ome.zarr")


@pytest.mark.parametrize(("shape", "described"), [((3, 8, 9), {"axes": ["z", "y", "x"]}), ((1, 2, 3, 8, 9), {})])
def test_axes_of_older_versions_are_names_or_always_the_same_five(tmp_path, shape, described):
    path = tmp_path / "old.zarr"
    multiscale = {"datasets": [{"path": "0"}], **described}
    group = zarr.create_group(store=path, zarr_format=2, attributes={"multiscales": [multiscale]})
    group.create_array(name="0", shape=shape, dtype="uint8")[...] = 1
    assert read_image(path).spanned_by(3).values.shape == (1, *(shape[-4:-3] or (1,)), 3, 8, 9)
    assert open_regions(path).axes == "TCZYX"[-len(shape) :]


def test_several_images_in_one_folder_are_series(tmp_path):
    path = tmp_path / "slides.zarr"
    zarr.create_group(store=path, attributes={"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
    for n in range(2):
        multiscale = {
            "axes": [{"name": name, "type": "space"} for name in "yx"],
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}],
        }
        group = zarr.create_group(
            store=path, path=str(n), attributes={"ome": {"version": "0.5", "multiscales": [multiscale]}}
        )
        group.create_array(name="0", shape=(6 + n, 7), dtype="uint8")[...] = n + 1
    assert open_regions(path, series=1).shape == (7, 7)
    assert (read_image(path, series=1).values == 2).all()
    with pytest.raises(MalformedInputError, match="holds 2 images; choose one"):
        read_image(path)
    with pytest.raises(UsageError, match="series 0 to 1"):
        read_image(path, series=2)


def test_what_is_no_image_is_told(tmp_path, sample):
    path = tmp_path / "a.zarr"
    for attributes, told in (
        ({}, "is a group;"),
        ({"ome": {"plate": {}}}, "is a plate of many images"),
        ({"ome": {"multiscales": [{"axes": [], "datasets": [{"path": "../../x"}]}]}}, "looks for its samples outside"),
        ({"ome": {"multiscales": [{"axes": [], "datasets": [{"path": "0"}]}]}}, "it is incomplete"),
        ({"ome": {"multiscales": [{"axes": ["y", "x"], "datasets": []}]}}, "names no array of its samples"),
    ):
        zarr.create_group(store=path, attributes=attributes, overwrite=True)
        with pytest.raises(MalformedInputError, match=told):
            open_regions(path)
