"""What must not be read is refused in one sentence, quickly, and without running or allocating anything."""

import os
import pickle
import re
import struct
import time
import warnings
import zipfile
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hostile_pickles import MakesFolder, not_dense
from io_cases import FILES, npy, whole_files
from PIL import Image
from safetensors.torch import save_file

from deconv_cli.errors import (
    DeconvError,
    FileAccessError,
    InputRefusedError,
    MalformedInputError,
    TooLargeError,
    UnsafeInputError,
    UsageError,
)
from deconv_cli.io import limits, read_image
from deconv_cli.io.file_inspection import inspect_file
from deconv_cli.io.files import refusing_damage
from deconv_cli.models.kernel_files import read_kernel


def png(width, height, bit_depth=8, color_type=0, data=b"") -> bytes:
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def assert_one_sentence(error, path):
    text = str(error)
    assert str(path) in text
    assert text.endswith(".")
    assert "\n" not in text


def test_missing_folder_empty_and_unreadable(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="does not exist") as caught:
        read_image(tmp_path / "no.png")
    assert_one_sentence(caught.value, "no.png")
    with pytest.raises(UsageError, match="folder"):
        read_image(tmp_path)
    (tmp_path / "e.png").touch()
    with pytest.raises(MalformedInputError, match="empty"):
        read_image(tmp_path / "e.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UsageError, match="pipe"):
        read_image(tmp_path / "pipe.png")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(FileAccessError, match="Permission denied"):
        read_image(tmp_path / "p.png")


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".pt"])
def test_not_finite(tmp_path, suffix):
    values = np.zeros((4, 5), "float32")
    values[2, 3], values[3, 0] = np.nan, -np.inf
    path = tmp_path / f"n{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(values), path)
    else:
        tifffile.imwrite(path, values)
    with pytest.raises(MalformedInputError, match=r"2 of 20 image samples .*\(2, 3\)") as caught:
        read_image(path)
    assert_one_sentence(caught.value, path)


def test_tensors_that_are_not_dense_and_real(tmp_path):
    others = {"complex": torch.zeros(4, 4) + 0j, "float8": torch.zeros(4, 4).to(torch.float8_e4m3fn)}
    for name, tensor in (not_dense() | others).items():
        torch.save(tensor, tmp_path / f"{name}.pt")
        with pytest.raises(InputRefusedError):
            read_image(tmp_path / f"{name}.pt")
    np.save(tmp_path / "c.npy", np.zeros((4, 4), "complex64"))
    np.save(tmp_path / "z.npy", np.zeros((0, 4)))
    np.save(tmp_path / "s.npy", np.zeros(4, [("a", "f4")]))
    np.save(tmp_path / "t.npy", np.array([["a", "b"]]))
    for name in "czst":
        with pytest.raises(MalformedInputError):
            read_image(tmp_path / f"{name}.npy")


@pytest.mark.parametrize("read", [read_image, read_kernel])
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"weight": torch.ones(4, 4), "x": e}])
def test_pickled_code_is_never_run(tmp_path, read, wrap):
    mark = tmp_path / "executed"
    hostile = wrap(MakesFolder(mark))
    torch.save(hostile, tmp_path / "evil.pt")
    torch.save(hostile, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(hostile))
    np.save(tmp_path / "o.npy", np.array([hostile], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", a=np.array([hostile], dtype=object))
    for name in ("evil.pt", "old.pt", "raw.pt", "o.npy", "o.npz"):
        with pytest.raises(UnsafeInputError) as caught:
            read(tmp_path / name)
        assert_one_sentence(caught.value, tmp_path / name)
    with pytest.raises(UnsafeInputError, match=r"posix\.mkdir"):
        read(tmp_path / "evil.pt")
    assert not mark.exists()
    # The payload is a real one: an ordinary unpickler does run it.
    pickle.loads((tmp_path / "raw.pt").read_bytes())
    assert mark.exists()


def test_a_program_is_not_opened(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(1, 1, 3), torch.ones(1, 1, 8, 8)), tmp_path / "s.pt")
    with pytest.raises(UnsafeInputError, match="TorchScript"):
        read_kernel(tmp_path / "s.pt")


def test_a_view_that_repeats_one_sample(tmp_path):
    torch.save(torch.zeros(1).expand(1_000_000, 1_000_000), tmp_path / "v.pt")
    assert (tmp_path / "v.pt").stat().st_size < 4000
    # 100 MB would fit the memory, but nobody saved them.
    torch.save(torch.zeros(1).expand(5000, 5000), tmp_path / "medium.pt")
    torch.save([torch.zeros(1).expand(1000, 1000)[:] for _ in range(25)], tmp_path / "many.pt")
    for name in ("v.pt", "medium.pt", "many.pt"):
        with pytest.raises(TooLargeError, match=r"bomb|half of the memory"):
            inspect_file(tmp_path / name)
    torch.save(torch.ones(1).expand(5, 6), tmp_path / "small.pt")
    assert read_image(tmp_path / "small.pt").values.shape == (1, 1, 5, 6)


def lying_files(folder):
    (folder / "lie.npy").write_bytes(npy("(1000000, 1000000)"))
    with zipfile.ZipFile(folder / "lie.npz", "w") as archive:
        archive.writestr("a.npy", npy("(100000, 10000)"))
    (folder / "lie.png").write_bytes(png(2**31 - 1, 2**31 - 1))
    (folder / "lie16.png").write_bytes(png(2**30, 2**30, 16, 2))
    (folder / "wide.png").write_bytes(png(40_000, 2_000, data=zlib.compress(b"\0")))
    for name, shape, options in (
        ("lie.tif", (16, 16), {}),
        ("tiled.tif", (32, 32), {"tile": (16, 16), "compression": "zlib"}),
    ):
        tifffile.imwrite(folder / name, np.zeros(shape, "uint8"), metadata=None, **options)
        with tifffile.TiffFile(folder / name, mode="r+") as opened:
            tags = opened.pages[0].tags
            for tag in ("ImageWidth", "ImageLength") if name == "lie.tif" else ("TileWidth", "TileLength"):
                tags[tag].overwrite(2_000_000, dtype="I")
    header = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    (folder / "lie.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    (folder / "long.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{" + bytes(64))
    return [p.name for p in sorted(folder.iterdir())]


def test_header_lies_are_refused_quickly_and_cheaply(tmp_path):
    names = lying_files(tmp_path)
    assert len(names) == 9
    Image.new("L", (4, 4)).save(tmp_path / "warm.png")
    tifffile.imwrite(tmp_path / "warm.tif", np.zeros((4, 4)))
    read_image(tmp_path / "warm.png"), read_image(tmp_path / "warm.tif")
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in names:
        start = time.process_time()
        with pytest.raises(InputRefusedError) as caught:
            read_image(tmp_path / name)
        assert_one_sentence(caught.value, tmp_path / name)
        assert time.process_time() - start < 1, name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, name


def test_the_memory_is_the_limit(tmp_path, monkeypatch):
    square = np.zeros((600, 600), "uint8")
    Image.fromarray(square).save(tmp_path / "a.png")
    Image.fromarray(square).save(tmp_path / "a.jpg")
    Image.fromarray(square).save(tmp_path / "a.webp", lossless=True)
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(square.astype("uint16")))
    tifffile.imwrite(tmp_path / "a.tif", square, compression="zlib")
    np.save(tmp_path / "a.npy", square)
    np.savez_compressed(tmp_path / "a.npz", a=square)
    torch.save(torch.from_numpy(square), tmp_path / "a.pt")
    save_file({"a": torch.from_numpy(square)}, tmp_path / "a.safetensors")
    names = [p.name for p in sorted(tmp_path.iterdir())]
    for name in names:
        assert read_image(tmp_path / name).values.shape[-1] == 600
    monkeypatch.setattr(limits, "memory_budget", lambda: 300_000)
    for name in names:
        with pytest.raises(TooLargeError, match="memory"):
            read_image(tmp_path / name)


def test_decompression_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FREE_BYTES", 100_000)
    square = np.zeros((1000, 1000), "uint8")
    Image.fromarray(square).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", square, compression="zlib")
    np.savez_compressed(tmp_path / "a.npz", a=square)
    torch.save(torch.from_numpy(square), tmp_path / "b.pt")
    with (
        zipfile.ZipFile(tmp_path / "b.pt") as old,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for suffix in ("png", "tif", "npz", "pt"):
        with pytest.raises(TooLargeError, match="bomb"):
            read_image(tmp_path / f"a.{suffix}")
        with limits.allowing(10**7):
            assert read_image(tmp_path / f"a.{suffix}").shape == (1000, 1000)
    monkeypatch.setattr(limits, "SMALL_FILE_BYTES", 10**5)
    assert read_image(tmp_path / "b.pt").shape == (1000, 1000)


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_never_read_as_less(tmp_path, name):
    whole_files(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    expected = read_image(path).values
    cuts = {len(data) * percent // 100 for percent in range(0, 100, 4)} | set(range(len(data) - 12, len(data)))
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        try:
            found = read_image(path).values
        except DeconvError as error:
            assert_one_sentence(error, path)
        else:
            # Only what lies behind the last sample may be missing.
            assert cut >= len(data) - 12, cut
            assert torch.equal(found, expected), cut


def test_entities_in_ome_are_refused(tmp_path):
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><OME><Image>&a;</Image></OME>'
    tifffile.imwrite(tmp_path / "x.ome.tif", np.zeros((4, 4), "uint8"), description=bomb, metadata=None, ome=False)
    with pytest.raises(MalformedInputError, match="entities"):
        read_image(tmp_path / "x.ome.tif")


def test_options_that_do_not_apply(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.ones((4, 4)))
    for name, options in (
        ("a.png", {"tensor": "x"}),
        ("a.png", {"series": 0}),
        ("a.npy", {"series": 0}),
        ("a.npy", {"tensor": "x"}),
    ):
        with pytest.raises(UsageError, match="="):
            read_image(tmp_path / name, **options)
    for name in ("a.png", "a.npy"):
        with pytest.raises(UsageError, match='layer="x"'):
            read_kernel(tmp_path / name, layer="x")


def test_tiles_without_data(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", np.ones((32, 32), "uint8"), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "s.tif", mode="r+") as opened:
        counts = opened.pages[0].tags["TileByteCounts"]
        counts.overwrite([0, *counts.value[1:]])
    with pytest.raises(MalformedInputError, match="missing"):
        read_image(tmp_path / "s.tif")


def test_checksums_are_compared(tmp_path):
    whole = tmp_path / "a.npz"
    np.savez(whole, image=np.arange(64.0).reshape(8, 8))
    data = bytearray(whole.read_bytes())
    place = data.index(struct.pack("<d", 63.0))
    data[place] ^= 1
    whole.write_bytes(data)
    with pytest.raises(MalformedInputError, match="CRC"):
        read_image(whole)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", dpi=(72, 72))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[data.index(b"pHYs") + 5] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(MalformedInputError, match="checksum"):
        read_image(tmp_path / "a.png")
    torch.save({"image": torch.full((8, 8), 0.5)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(struct.pack("<f", 0.5) * 8)] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    for read in (read_image, read_kernel):
        with pytest.raises(MalformedInputError, match="checksum of its entry"):
            read(tmp_path / "a.pt")


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}])
def test_a_jpeg_of_too_few_rows(tmp_path, options):
    """A decoder makes up the rows that are missing, and says nothing."""
    colors = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype="uint8")
    Image.fromarray(colors).save(tmp_path / "x.jpg", **options)
    content = bytearray((tmp_path / "x.jpg").read_bytes())
    assert read_image(tmp_path / "x.jpg").shape == (64, 48, 3)
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 2] = (96).to_bytes(2, "big")
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(MalformedInputError, match="truncated"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_of_thousands_of_tensors_is_inspected_in_seconds(tmp_path, suffix):
    path, n = tmp_path / f"many{suffix}", 4000
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(n):
                archive.writestr(f"{number}.npy", npy("(1,)"))
    else:
        save_file({str(number): torch.zeros(1) for number in range(n)}, path)
    started = time.process_time()
    found = inspect_file(path)
    assert time.process_time() - started < 5
    assert len(found.entries) == 1000
    assert "first 1000 of 4000 tensors" in found.notes[0]


def test_what_a_codec_stumbles_into_is_told_as_what_it_is(tmp_path):
    told = r"TIFF file \(its parts contradict one another\); it is damaged, incomplete"
    with pytest.raises(MalformedInputError, match=told), refusing_damage(tmp_path / "a.tif", "a TIFF file"):
        raise AttributeError("'NoneType' object has no attribute 'itemsize'")
    path = tmp_path / "my_file.png"
    for reason in ("bad magic number: expected 5 >= 3", "checksum = wrong", f"cannot identify image file '{path}'"):
        kept = re.escape(reason.replace(f" '{path}'", ""))
        with (
            pytest.raises(MalformedInputError, match=rf"\({kept}\); it is damaged"),
            refusing_damage(path, "a picture"),
        ):
            raise ValueError(reason)
