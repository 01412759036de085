"""Zarr by parts: as the package zarr itself reads and writes it, and never half-written under the name of a result."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from region_cases import planned, some_regions, units, write_all

from deconv_cli.errors import FileAccessError, MalformedInputError, TooLargeError, UsageError
from deconv_cli.io import atomic, read_image
from deconv_cli.io.layout import Layout
from deconv_cli.io.output import plan_regions
from deconv_cli.io.regions import open_regions

zarr = pytest.importorskip("zarr")
STACK = np.random.default_rng(4).random((2, 5, 70, 90)).astype("float32")


KINDS = {
    "version 2, high byte first": {"zarr_format": 2, "dtype": ">u2", "chunks": (1, 2, 32, 32)},
    "version 2, columns first": {"zarr_format": 2, "dtype": "float64", "chunks": (1, 2, 32, 32), "order": "F"},
    "version 3": {"dtype": "float32", "chunks": (1, 2, 32, 32), "dimension_names": ["c", "z", "y", "x"]},
    "shards": {"dtype": "int16", "chunks": (1, 2, 16, 16), "shards": (1, 4, 64, 32)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_what_the_array_has_there(tmp_path, kind):
    path = tmp_path / "a.zarr"
    array = zarr.create_array(store=path, shape=STACK.shape, **KINDS[kind])
    array[...] = whole = (1000 * STACK).astype(KINDS[kind]["dtype"])
    source = open_regions(path)
    assert source.shape == STACK.shape
    assert source.dtype == whole.dtype.newbyteorder("=").name
    assert source.chunk == KINDS[kind]["chunks"]
    assert source.axes == ("CZYX" if "dimension_names" in KINDS[kind] else "")
    for region in some_regions(source.shape, 4):
        part = source.read(region)
        assert part.dtype.isnative
        np.testing.assert_array_equal(part, whole[region])
    before = source.fingerprint()
    assert open_regions(path).fingerprint() == before
    array[0, 0, 0, 0] = 7
    assert source.fingerprint() != before


def test_parts_become_one_array_which_is_none_before(tmp_path):
    source = made(tmp_path / "in.zarr", STACK, chunks=(1, 2, 32, 32), shards=(1, 4, 64, 64))
    path = tmp_path / "out.zarr"
    target = planned(source, path)
    assert target.unit == (1, 2, 32, 32)
    target.create()
    write_all(target, STACK)
    with pytest.raises(UsageError):
        read_image(path)
    with pytest.raises(MalformedInputError, match="unfinished result"):
        read_image(tmp_path / ".out.zarr.partial")
    target.finish({"command": "invert"})
    image = read_image(path)
    assert image.record["command"] == "invert"
    assert image.record["output"]["shape"] == list(STACK.shape)
    np.testing.assert_array_equal(image.spanned_by(3).values.numpy()[0], STACK)
    stored = zarr.open_array(path, mode="r")
    assert stored.chunks == (1, 2, 32, 32)
    assert sorted(stored.metadata.dimension_names) == ["c", "x", "y", "z"]


def made(path, samples, **options):
    options = {"dimension_names": ["c", "z", "y", "x"][-samples.ndim :], **options}
    zarr.create_array(store=path, shape=samples.shape, dtype=samples.dtype, **options)[...] = samples
    return open_regions(path)


def test_chunks_of_an_earlier_run_stay_unless_they_were_to_become_something_else(tmp_path):
    source = made(tmp_path / "in.zarr", STACK[0], chunks=(2, 32, 32))
    target = planned(source, tmp_path / "out.zarr")
    target.create()
    half = units(target)[:5]
    for region in half:
        target.write(region, STACK[0][region])
    target.create()
    for region in units(target)[5:]:
        target.write(region, STACK[0][region])
    target.finish({})
    np.testing.assert_array_equal(read_image(tmp_path / "out.zarr").values.numpy().reshape(STACK[0].shape), STACK[0])
    other = plan_regions(
        tmp_path / "two.zarr", source, Layout("ZYX", source.shape), n_channels=1, size=(70, 90), output_dtype="float64"
    )
    planned(source, tmp_path / "two.zarr").create()
    planned(source, tmp_path / "two.zarr").write(half[0], STACK[0][half[0]])
    other.create()
    with pytest.raises(FileAccessError, match="should have 27 files of samples, but 27 are missing"):
        other.finish({})
    write_all(other, STACK[0].astype("float64") * 0)
    other.finish({})
    assert not read_image(tmp_path / "two.zarr").values.any()
    assert read_image(tmp_path / "two.zarr").notes == read_image(tmp_path / "out.zarr").notes
    target.discard()


def interrupted(path):
    raise KeyboardInterrupt


def test_what_a_killed_process_left_counts_for_nothing_and_goes_away(tmp_path, monkeypatch):
    source = made(tmp_path / "in.zarr", STACK[0], chunks=(2, 32, 32))
    target = planned(source, tmp_path / "out.zarr")
    target.create()
    write_all(target, STACK[0])
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "synchronize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            target.finish({})
    assert target.create()
    chunk = tmp_path / ".out.zarr.partial" / "c" / "0" / "0" / "0"
    half = chunk.rename(chunk.with_suffix(".0a1b.partial"))
    with pytest.raises(FileAccessError, match="1 are missing"):
        target.finish({})
    target.write(units(target)[0], STACK[0][units(target)[0]])
    target.write((slice(0, 2), slice(0, 32), slice(0, 32)), STACK[0, :2, :32, :32])
    assert half.exists()
    target.finish({})
    assert not list((tmp_path / "out.zarr").rglob("*.partial"))
    np.testing.assert_array_equal(read_image(tmp_path / "out.zarr").values.numpy().reshape(STACK[0].shape), STACK[0])


def test_what_is_missing_in_a_copy_is_told(tmp_path):
    made(tmp_path / "a.zarr", STACK[0], chunks=(2, 32, 32), shards=(4, 64, 64))
    assert open_regions(tmp_path / "a.zarr").notes == ()
    (tmp_path / "a.zarr" / "c" / "0" / "1" / "1").unlink()
    assert "1 of 8 files of samples are missing" in open_regions(tmp_path / "a.zarr").notes[0]
    assert "1 of 8 files of samples are missing" in read_image(tmp_path / "a.zarr").notes[0]


def test_a_result_is_replaced_only_if_it_is_one(tmp_path):
    source = made(tmp_path / "in.zarr", STACK[0], chunks=(2, 32, 32))
    made(tmp_path / "out.zarr", STACK[0] * 0)
    with pytest.raises(UsageError, match="exists already"):
        planned(source, tmp_path / "out.zarr")
    target = planned(source, tmp_path / "out.zarr", force=True)
    target.create()
    write_all(target, STACK[0])
    assert not read_image(tmp_path / "out.zarr").values.any()
    target.finish({})
    np.testing.assert_array_equal(read_image(tmp_path / "out.zarr").values.numpy().reshape(STACK[0].shape), STACK[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.zarr", "out.zarr"]
    (tmp_path / "letters.zarr").mkdir()
    (tmp_path / "letters.zarr" / "dear.txt").touch()
    with pytest.raises(UsageError, match="should be a file, but is a folder"):
        planned(source, tmp_path / "letters.zarr", force=True)


def test_damage_is_told_in_one_sentence(tmp_path):
    path = tmp_path / "a.zarr"
    target = planned(made(tmp_path / "in.zarr", STACK[0], chunks=(5, 70, 90)), path)
    target.create()
    write_all(target, STACK[0])
    target.finish({})
    with pytest.raises(UsageError, match="should be a file or a Zarr, but is a folder"):
        open_regions(tmp_path)
    with pytest.raises(UsageError, match="series=3 was chosen"):
        open_regions(path, series=3)
    chunk = path / "c" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(MalformedInputError, match="cannot be read as a Zarr"):
        open_regions(path).read((slice(0, 5), slice(0, 70), slice(0, 90)))
    description = json.loads((path / "zarr.json").read_text())
    for change in ({"shape": [5, 70]}, {"data_type": "complex64"}, {"codecs": []}, {"shape": "x"}):
        (path / "zarr.json").write_text(json.dumps(description | change))
        with pytest.raises(MalformedInputError):
            open_regions(path)
    for text in ("", "[]", "{", '{"node_type": "group"}'):
        (path / "zarr.json").write_text(text)
        with pytest.raises(MalformedInputError):
            open_regions(path)


@pytest.mark.parametrize(
    ("sizes", "error", "says"),
    [
        (((2000, 2000), (1, 1)), TooLargeError, "promises 4.00006e+06 parts out of"),
        (((200_000, 2), (10, 10)), TooLargeError, "promises 20064 parts out of 0 bytes"),
        (((64 * 10**8, 64 * 10**8), (64, 64)), TooLargeError, "promises 1e+16 parts"),
        (((2**62, 2**62), (64, 64)), TooLargeError, "parts out of 0 bytes"),
        (((10, 10), (8700, 8700)), TooLargeError, "decompression bomb"),
        (((32, 32), (16, 16)), MalformedInputError, "file of samples that is empty"),
        (((32, 48), (16, 16)), FileAccessError, "is a pipe"),
    ],
)
def test_a_small_zarr_that_lies_is_refused_before_it_is_read(tmp_path, sizes, error, says):
    shape, chunks = sizes
    path = tmp_path / "x.zarr"
    array = zarr.create_array(path, shape=shape, chunks=chunks, dtype="uint8", config={"write_empty_chunks": True})
    if shape[0] < 2000:
        array[:10, :10] = 0
    if says == "is a pipe":
        os.mkfifo(path / "c" / "1")
    elif "is empty" in says:
        (path / "c" / "0" / "0").write_bytes(b"")
    for read in (read_image, lambda path: open_regions(path).fingerprint()):
        with pytest.raises(error, match=re.escape(says)):
            read(path)


def test_a_filter_that_opens_pickles_is_refused_before_a_chunk_is_read(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(store=path, shape=(4, 4), dtype="float32", chunks=(4, 4), zarr_format=2)
    description = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(description | {"filters": [{"id": "pickle"}]}))
    for change in ({"dtype": "|O"}, {"dtype": "|O", "filters": [{"id": "pickle"}]}):
        with pytest.raises(MalformedInputError, match="No Zarr data type"):
            open_regions(path)
        (path / ".zarray").write_text(json.dumps(description | change))
    with pytest.raises(MalformedInputError, match="No Zarr data type"):
        open_regions(path)


@pytest.mark.parametrize("version", [2, 3])
def test_a_chain_of_very_many_codecs_is_refused(tmp_path, version):
    path, key = tmp_path / "a.zarr", "filters" if version == 2 else "codecs"
    zarr.create_array(store=path, shape=(4, 4), dtype="uint8", chunks=(4, 4), zarr_format=version)
    place = path / (".zarray" if version == 2 else "zarr.json")
    description = json.loads(place.read_text())
    many = [{"id": "zlib", "level": 1}] if version == 2 else description[key][-1:]
    place.write_text(json.dumps(description | {key: (description[key] or []) + many * 20}))
    with pytest.raises(MalformedInputError, match="codecs, but a normal array"):
        open_regions(path)


def test_an_array_that_promises_more_than_the_memory_is_read_by_parts_alone(tmp_path):
    path = tmp_path / "large.zarr"
    zarr.create_array(store=path, shape=(2**20, 2**20, 4), dtype="float32", chunks=(2**14, 2**14, 4))
    source = open_regions(path, axes="yxc")
    assert source.read((slice(2**20 - 3, 2**20), slice(0, 2), slice(0, 4))).shape == (3, 2, 4)
    with pytest.raises(TooLargeError):
        read_image(path)
    zarr.create_array(store=tmp_path / "lie.zarr", shape=(2**20, 2**20), dtype="float32", chunks=(2**20, 2**20))
    with pytest.raises(TooLargeError):
        open_regions(tmp_path / "lie.zarr")


@pytest.mark.parametrize(
    "address", ["s3://bucket/a.zarr", "file:///tmp/a.tif", "https://example.org/a.ome.zarr", "memory://a.tif"]
)
def test_an_address_is_refused_as_input_and_as_output(tmp_path, address):
    with pytest.raises(UsageError, match=f"'{address}' is an address.*copy it here, or mount it"):
        open_regions(Path(address))
    with pytest.raises(UsageError, match=f"'{address}' is an address.*choose a path on this machine"):
        planned(made(tmp_path / "in.zarr", STACK[0]), Path(address), force=True)
