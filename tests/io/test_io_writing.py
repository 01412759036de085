"""Results are written completely or not at all, and what cannot be is refused before the computation."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from deconv_cli.errors import FileAccessError, MalformedInputError, UntrustworthyResultError, UsageError
from deconv_cli.io import ImageFile, atomic, output, read_image
from deconv_cli.io.regions import open_regions
from deconv_cli.vocabulary import OutputDType

ALL_SUFFIXES = [
    *(".tif", ".png", ".safetensors", ".npy"),
    pytest.param(".ome.zarr", marks=pytest.mark.skipif(find_spec("zarr") is None, reason="an extra")),
]


@pytest.fixture
def source(tmp_path, rng) -> ImageFile:
    Image.fromarray(rng.integers(0, 255, (64, 80, 3)).astype("uint8")).save(tmp_path / "in.png")
    return read_image(tmp_path / "in.png")


@pytest.fixture
def float_source(tmp_path, rng) -> ImageFile:
    np.save(tmp_path / "in.npy", rng.random((2, 3, 16, 20)).astype("float32"))
    return read_image(tmp_path / "in.npy")


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_repeating_pattern_is_written_small(tmp_path, rng, planned):
    pattern = np.tile(rng.integers(0, 255, (16, 16)).astype("uint8"), (20, 20))
    Image.fromarray(pattern).save(tmp_path / "in.png")
    source = read_image(tmp_path / "in.png")
    planned(tmp_path / "out.png", source).prepare(source.values.float()).write({})
    assert (tmp_path / "out.png").stat().st_size < pattern.size // 10
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), pattern)


@pytest.mark.parametrize("name", ["out.pcx", "out", "out.jp2", "out.pth"])
def test_unknown_suffixes(tmp_path, source, planned, name):
    with pytest.raises(UsageError, match=r"\.ome\.tif"):
        planned(tmp_path / name, source)


def test_places(tmp_path, source, planned):
    (tmp_path / "there.tif").write_text("mine")
    with pytest.raises(UsageError, match=r"exists already.*force=True"):
        planned(tmp_path / "there.tif", source)
    planned(tmp_path / "there.tif", source, force=True)
    (tmp_path / "link.png").hardlink_to(tmp_path / "in.png")
    for name in ("in.png", "link.png"):
        with pytest.raises(UsageError, match="is the input itself"):
            planned(tmp_path / name, source, force=True)
    with pytest.raises(UsageError, match=r"folder .* does not exist"):
        planned(tmp_path / "no" / "out.tif", source)
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        planned(tmp_path / "folder.tif", source, force=True)
    (tmp_path / "out.pt.json").write_text("mine")
    with pytest.raises(UsageError, match=r"out\.pt\.json"):
        planned(tmp_path / "out.pt", source)
    planned(tmp_path / "out.safetensors", source)
    assert (tmp_path / "there.tif").read_text() == "mine"


def test_what_a_format_cannot_hold(tmp_path, source, float_source, planned):
    with pytest.raises(UsageError, match="5 channels"):
        planned(tmp_path / "o.png", source, n_channels=5)
    with pytest.raises(UsageError, match="2 planes"):
        planned(tmp_path / "o.png", float_source, output_dtype=OutputDType.UINT8)
    for suffix, dtype in ((".jpg", "uint16"), (".webp", "float32"), (".png", "float16")):
        with pytest.raises(UsageError, match="output_dtype=uint8"):
            planned(tmp_path / f"o{suffix}", source, output_dtype=OutputDType(dtype))
    with pytest.raises(UsageError, match="float16"):
        planned(tmp_path / "o.ome.tif", source, output_dtype=OutputDType.FLOAT16)
    np.save(tmp_path / "deep.npy", np.zeros((2, 2, 2, 4, 4), "float32"))
    deep = read_image(tmp_path / "deep.npy", axes="ABDYX")
    with pytest.raises(UsageError, match="OME knows"):
        planned(tmp_path / "o.ome.tif", deep)
    planned(tmp_path / "o.tif", deep)


@pytest.mark.parametrize(("name", "package"), [("o.zarr", "zarr"), ("o.fits", "astropy.io.fits")])
def test_a_package_that_is_missing_is_missed_before_anything_is_computed(
    tmp_path, source, planned, monkeypatch, name, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"{name}' is a .*pip install 'deconv-cli\["):
        planned(tmp_path / name, source)


def test_a_float_picture_asks_for_a_type(tmp_path, rng, planned):
    tifffile.imwrite(tmp_path / "f.tif", rng.random((16, 20)).astype("float32"))
    with pytest.raises(UsageError, match=r"uint8\|uint16.*\.tif"):
        planned(tmp_path / "o.png", read_image(tmp_path / "f.tif"))


@pytest.mark.parametrize(("dtype", "end"), [("uint8", 255), ("uint16", 65535)])
def test_rounding_is_half_to_even_and_clipping_is_counted(tmp_path, source, planned, dtype, end):
    values = torch.full((1, 3, 64, 80), 2.5, dtype=torch.float64)
    values[0, 0, 0, :5] = torch.tensor([-7.0, -0.4, 3.5, end + 0.4, end + 9.0])
    result = planned(tmp_path / "o.png", source, output_dtype=OutputDType(dtype)).prepare(values)
    assert any(f"2 samples (0.013 %) clipped to 0 to {end}" in note for note in result.notes)
    result.write({})
    assert read_image(tmp_path / "o.png").values[0, 0, 0, :6].tolist() == [0, 0, 4, end, end, 2]


def test_floats_are_rounded_with_a_word(tmp_path, source, planned):
    values = torch.full((1, 3, 64, 80), 1e6, dtype=torch.float64)
    half = planned(tmp_path / "h.tif", source, output_dtype=OutputDType.FLOAT16).prepare(values)
    assert any("clipped to -65504 to 65504" in note for note in half.notes)
    single = planned(tmp_path / "s.tif", source).prepare(values)
    assert any(
        "rounded from float64 to float32 (output_dtype=float64 keeps all digits)" in note for note in single.notes
    )
    assert planned(tmp_path / "s.tif", source).prepare(values.float()).notes == ()


def test_results_that_are_not_finite_are_not_written(tmp_path, source, planned):
    values = torch.zeros(1, 3, 64, 80)
    values[0, 1, 2, 3] = torch.nan
    with pytest.raises(UntrustworthyResultError, match="1 of 15360"):
        planned(tmp_path / "o.tif", source).prepare(values)


@pytest.mark.parametrize("suffix", ALL_SUFFIXES)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("moment", ["fsync", "check", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path, source, planned, monkeypatch, suffix, failure, moment):
    target = tmp_path / f"o{suffix}"
    target.write_bytes(b"old")
    (tmp_path / f"o{suffix}.json").write_bytes(b"old record")
    result = planned(target, source, force=True).prepare(source.values.float())
    before = names_in(tmp_path)

    def fail(*_, **__):
        raise failure

    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif moment == "check":
        monkeypatch.setattr(output, "read_stored", fail)
    else:
        # Not Path.replace, by which the package zarr writes chunks in threads of its own.
        monkeypatch.setattr(atomic, "put_in_place", fail)
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else FileAccessError
    with pytest.raises(expected):
        result.write({})
    assert names_in(tmp_path) == before
    assert target.read_bytes() == b"old"
    assert (tmp_path / f"o{suffix}.json").read_bytes() == b"old record"


@pytest.mark.parametrize("suffix", ALL_SUFFIXES)
def test_a_write_that_the_system_cuts_short(tmp_path, source, planned, suffix):
    target = tmp_path / f"o{suffix}"
    target.write_bytes(b"old")
    result = planned(target, source, force=True).prepare(source.values.float())
    before = names_in(tmp_path)
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(FileAccessError) as caught:
            result.write({})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(target) in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == before
    assert target.read_bytes() == b"old"


def test_a_file_that_does_not_read_back_is_not_kept(tmp_path, source, planned, monkeypatch):
    result = planned(tmp_path / "o.npy", source).prepare(source.values.float())
    monkeypatch.setattr(np, "save", lambda stream, array, **_: stream.write(b"nonsense"))
    with pytest.raises(FileAccessError, match="reading the file back failed"):
        result.write({})
    assert names_in(tmp_path) == ["in.png"]

    def change_a_sample(stream, array, **_):
        np.lib.format.write_array(stream, array + 1)

    monkeypatch.setattr(np, "save", change_a_sample)
    with pytest.raises(FileAccessError, match="samples differ"):
        result.write({})


def test_a_link_goes_on_pointing_to_its_target(tmp_path, source, planned):
    (tmp_path / "real").mkdir()
    shutil.copy(tmp_path / "in.png", tmp_path / "real" / "r.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "r.png")
    planned(tmp_path / "link.png", source, force=True).prepare(source.values.float() * 0 + 7).write({})
    assert (tmp_path / "link.png").is_symlink()
    assert bool((read_image(tmp_path / "real" / "r.png").values == 7).all())
    assert names_in(tmp_path / "real") == ["r.png"]


def test_a_folder_whose_place_cannot_be_taken_leaves_the_old_one(tmp_path, monkeypatch):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace, calls = Path.replace, []

    def second_fails(path, target):
        calls.append(path.name)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        atomic.put_in_place(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "old").exists()
    assert names_in(tmp_path) == ["new", "old"]
    atomic.put_in_place(tmp_path / "new", tmp_path / "old")
    assert names_in(tmp_path) == ["old"]
    assert names_in(tmp_path / "old") == ["new"]


def test_a_folder_without_permission(tmp_path, source, planned, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(FileAccessError, match="no permission"):
        planned(tmp_path / "o.tif", source)


@pytest.mark.parametrize("ending", ["", "-0123abcd"])
@pytest.mark.parametrize("read", [read_image, open_regions])
def test_a_result_in_the_making_is_not_read(tmp_path, ending, read):
    hidden = atomic.partial_path(tmp_path / "out.npy")
    np.save(tmp_path / "whole.npy", np.zeros((4, 4)))
    (tmp_path / "whole.npy").rename(hidden.with_name(hidden.name + ending))
    with pytest.raises(MalformedInputError, match="is an unfinished result with missing parts"):
        read(hidden.with_name(hidden.name + ending))
