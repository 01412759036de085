"""Reading is bounded in work: a few damaged bytes never cost more than a moment, and end in one sentence."""

import io
import logging
import signal
import struct
import zipfile
import zlib

import numpy as np
import pytest
import tifffile
import torch
from io_cases import FILES, npy, whole_files
from PIL import Image

from deconv_cli.errors import DeconvError, MalformedInputError, TooLargeError
from deconv_cli.io import limits, read_image

SECONDS = 5


def read_quickly(path):
    """Read a file; a hang, in processor time, is an error, and every refusal is one sentence."""

    def ring(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return read_image(path)
    except DeconvError as error:
        text = str(error)
        assert str(path) in text
        assert text.endswith(".")
        assert "\n" not in text
        assert len(text) < 1000
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_of_a_header_are_answered_quickly(tmp_path, name):
    whole_files(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    rng = np.random.default_rng(9)
    for place in range(0, min(len(data), 300), 3):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        read_quickly(path)


def directory(*tags, following=0):
    """A directory of a classic TIFF file: (code, type, count, value) for each tag."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


@pytest.mark.parametrize("is_silenced", [False, True])
def test_directories_in_a_circle(tmp_path, is_silenced, request):
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    logging.disable(logging.CRITICAL if is_silenced else logging.NOTSET)
    first = directory((256, 3, 1, 4), (257, 3, 1, 4), (273, 4, 1, 8), (279, 4, 1, 16), following=8)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + first + bytes(64))
    with pytest.raises(MalformedInputError, match="circle"):
        read_image(tmp_path / "a.tif")


def test_a_compressed_file_of_gigabytes_is_weighed_before_decoding(tmp_path, monkeypatch):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        zeros = zlib.compress(bytes(1024 * 1024), 9)
        tiles = (zeros for _ in range(256))
        writer.write(tiles, shape=(16384, 16384), dtype="uint8", tile=(1024, 1024), compression=8, metadata=None)
    assert (tmp_path / "a.tif").stat().st_size < 400_000
    monkeypatch.setattr(limits, "memory_budget", lambda: 2**40)
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(TooLargeError, match="256 MiB out of"):
        read_image(tmp_path / "a.tif")


def test_an_imagej_stack_cut_short_is_no_single_plane(tmp_path, rng):
    """tifffile reads it as one plane and reports it only in its log, which a caller may have silenced."""
    planes = rng.integers(0, 255, (4, 32, 32)).astype("uint8")
    description = "ImageJ=1.54f\nimages=4\nslices=4\n"
    tifffile.imwrite(tmp_path / "a.tif", planes[0], description=description, metadata=None, software=False)
    with (tmp_path / "a.tif").open("ab") as stream:
        stream.write(planes[1:].tobytes())
    logger = logging.getLogger("tifffile")
    before = logger.level
    try:
        for level in (logging.NOTSET, logging.CRITICAL + 1):
            logger.setLevel(level)
            whole = read_image(tmp_path / "a.tif")
            assert (whole.shape, whole.axes) == ((4, 32, 32), "ZYX")
            cut = tmp_path / "cut.tif"
            cut.write_bytes((tmp_path / "a.tif").read_bytes()[:-1500])
            with pytest.raises(MalformedInputError):
                read_image(cut)
            assert logger.level == level
    finally:
        logger.setLevel(before)


def with_description(path, old, new):
    """Replace a part of a description, which moves to the end of the file."""
    data = path.read_bytes()
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        tag = opened.pages[0].tags[270]
        text = data[tag.valueoffset : tag.valueoffset + tag.count]
    assert old in text
    changed = text.replace(old, new)
    damaged = bytearray(data)
    struct.pack_into("<HHII", damaged, tag.offset, 270, 2, len(changed), len(data))
    path.write_bytes(bytes(damaged) + changed)


HUGE = b"9" * 5000
COUNTS = [HUGE, b"100000000", b"5", b"-2", b"1.5", b"x", b"0"]
SIZES = [HUGE, b"1e999999999", b"1e-999999999", b"nan", b"inf", b"0", b"-1", b"x"]
SHAPES = [b"[100000000, 8, 8]", b"[%s, 8, 8]" % HUGE, b"[%s]" % HUGE[:4000], b"null", b'"x"']
OME = {"ome": True, "metadata": {"axes": "TYX"}}
SIZED = {"ome": True, "metadata": {"axes": "TYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}}
IMAGEJ = {"imagej": True, "metadata": {"axes": "TYX"}}
SPACED = {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 0.3, "unit": "um"}}
HOSTILE = {
    "sizes in OME": (OME, b'SizeT="%s"', b"4", COUNTS, None),
    "pixels in OME": (SIZED, b'="%s"', b"0.5", SIZES, "PhysicalSize"),
    "images in ImageJ": (IMAGEJ, b"images=%s", b"4", COUNTS, None),
    "frames in ImageJ": (IMAGEJ, b"frames=%s", b"4", COUNTS, None),
    "spacing in ImageJ": (SPACED, b"spacing=%s", b"0.3", SIZES, "PhysicalSizeZ"),
    "shapes in JSON": ({"photometric": "minisblack"}, b"%s", b"[4, 8, 8]", SHAPES, None),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_descriptions(tmp_path, kind, rewrite):
    """Impossible numbers of samples are refused; impossible pixel sizes are ignored."""
    options, pattern, honest, changes, left_out = HOSTILE[kind]
    path = tmp_path / ("a.ome.tif" if "ome" in options else "a.tif")
    for new in changes:
        tifffile.imwrite(path, np.ones((4, 8, 8), "uint8"), **options)
        with_description(path, pattern % honest, pattern % new)
        found = read_quickly(path)
        assert (found is None) == (left_out is None)
        if left_out:
            rewrite(path, tmp_path / "b.ome.tif", force=True)
            with tifffile.TiffFile(tmp_path / "b.ome.tif") as opened:
                assert left_out not in opened.ome_metadata


@pytest.mark.parametrize(
    "shape", ["(" + "9" * 5000 + ",)", "(0x" + "f" * 5000 + ", 4)", "(0x" + "f" * 200 + ",)", "(-4, 4)", "(" * 2000]
)
def test_hostile_shapes_in_numpy_headers(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(npy(shape))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy(shape))
    assert read_quickly(tmp_path / "a.npy") is None
    assert read_quickly(tmp_path / "a.npz") is None


def test_elements_without_a_size_promise_any_number_of_them(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy("(1000000000000,)", "|V0"))
    with pytest.raises(MalformedInputError, match="real numbers"):
        read_image(tmp_path / "a.npy")


def test_lists_that_share_their_parts_are_not_unfolded(tmp_path):
    """Thirty levels of two equal parts are a billion tensors in a file of 2 kB."""
    shared = [torch.ones(2, 2)]
    for _ in range(30):
        shared = [shared, shared]
    torch.save(shared, tmp_path / "a.pt")
    assert read_quickly(tmp_path / "a.pt") is None
    endless = {}
    endless["self"] = endless
    torch.save(endless, tmp_path / "b.pt")
    with pytest.raises(MalformedInputError, match="without end"):
        read_image(tmp_path / "b.pt")


def test_a_picture_of_very_many_scans(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 90).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    start = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:start] + data[start:-2] * 200 + data[-2:])
    with pytest.raises(MalformedInputError, match="scans"):
        read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_image(tmp_path / "a.jpg").shape == (64, 64)


def test_a_camera_file_of_several_pictures_is_read_as_its_first(tmp_path):
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.jpg")
    assert image.values[0, 0].min() > 200
    assert any("more pictures" in note for note in image.notes)
