"""Formats describe themselves: what a codec says of itself is all that reading, planning and writing go by."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import deconv_cli
from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import Metadata, PictureCodec, StoredImage, TensorCodec, TensorFile, read_image
from deconv_cli.io.formats import all_codecs, codec_named
from deconv_cli.parts import CODECS
from deconv_cli.vocabulary import OutputDType


class Graymap(PictureCodec):
    """Portable graymaps, as a user would add them."""

    name = "PGM"
    suffixes = (".pgm",)
    magic = (b"P5",)
    dtypes = ("uint8",)
    channel_counts = (1,)

    def read(self, path, member=None):
        _, width, height, largest, data = path.read_bytes().split(maxsplit=4)
        if largest != b"255":
            raise ValueError("more than 8 bits")
        return StoredImage(np.frombuffer(data, np.uint8).reshape(int(height), int(width)), "YX")

    def write(self, path, image):
        height, width = image.shape
        path.write_bytes(b"P5 %d %d 255\n" % (width, height) + np.asarray(image.samples).tobytes())


@pytest.fixture
def graymap():
    deconv_cli.CODECS.register("pgm", Graymap())
    yield
    deconv_cli.CODECS.unregister("pgm")


@pytest.fixture
def pgm_file(tmp_path, rng):
    path = tmp_path / "in.pgm"
    path.write_bytes(b"P5 20 16 255\n" + rng.integers(33, 255, 320).astype("uint8").tobytes())
    return path


def test_a_codec_of_the_user_reads_and_writes(tmp_path, graymap, pgm_file, rewrite):
    image = read_image(pgm_file)
    assert (image.shape, image.dtype, image.axes, image.is_picture) == ((16, 20), "uint8", "YX", True)
    prepared, found = rewrite(pgm_file, tmp_path / "out.pgm")
    assert prepared.dtype == "uint8"
    assert torch.equal(found.values, image.values)
    # Its format takes no record, so the record lies beside it.
    assert (tmp_path / "out.json").exists()
    assert found.record["command"] == "invert"
    assert (tmp_path / "out.pgm").read_bytes() == pgm_file.read_bytes()


def test_what_a_codec_of_the_user_cannot_hold(tmp_path, graymap, pgm_file, planned):
    source = read_image(pgm_file)
    with pytest.raises(UsageError, match="PGM holds 1"):
        planned(tmp_path / "o.pgm", source, n_channels=3)
    with pytest.raises(UsageError, match="output_dtype=uint8 "):
        planned(tmp_path / "o.pgm", source, output_dtype=OutputDType.FLOAT32)
    pgm_file.write_bytes(b"P5 20 16 65535\n" + bytes(640))
    with pytest.raises(MalformedInputError, match=r"cannot be read as a PGM file \(more than 8 bits\)"):
        read_image(pgm_file)


def test_messages_name_the_codec_of_the_user(tmp_path, graymap, planned, pgm_file):
    (tmp_path / "x.bin").write_bytes(b"no such format at all")
    with pytest.raises(MalformedInputError, match=r"TIFF, PNG, .* and PGM\."):
        read_image(tmp_path / "x.bin")
    with pytest.raises(UsageError, match=r"\.pgm \(or \.ome\.tif\)"):
        planned(tmp_path / "x.bin", read_image(pgm_file))


def test_a_codec_of_tensors(tmp_path, rng):
    class Text(TensorCodec):
        name, suffixes, magic = "text", (".txt",), (b"# matrix",)

        def list_tensors(self, path):
            found = np.loadtxt(path)
            return TensorFile(path, {"": found.shape}, lambda _: found)

        def write(self, path, image):
            np.savetxt(path, image.samples, header="matrix")

    CODECS.register("text", Text())
    try:
        stored = rng.random((4, 5))
        np.savetxt(tmp_path / "m.txt", stored, header="matrix")
        found = read_image(tmp_path / "m.txt")
        assert (found.is_picture, found.shape) == (False, (4, 5))
        np.testing.assert_allclose(found.values[0, 0].numpy(), stored)
        with pytest.raises(UsageError, match="leave out tensor"):
            read_image(tmp_path / "m.txt", tensor="a")
    finally:
        CODECS.unregister("text")


def test_every_codec_describes_itself():
    codecs = list(all_codecs())
    suffixes = [suffix for codec in codecs for suffix in codec.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)
    assert len({codec.name for codec in codecs}) == len(codecs)
    assert all(codec.carries <= set(Metadata.__dataclass_fields__) for codec in codecs)
    assert all(set(codec.dtypes) <= set(OutputDType) for codec in codecs)
    assert [codec.name for codec in codecs if not codec.is_lossless] == ["JPEG"]


def test_suffixes_are_known_before_any_library_of_a_format_is_loaded():
    code = (
        "import sys; from pathlib import Path; from deconv_cli.io.formats import all_codecs, codec_named;"
        "print(codec_named(Path('a.PNG')).name, sum(codec.recognizes(b'II*\\0') for codec in all_codecs()));"
        "print([m for m in ('tifffile', 'imagecodecs', 'PIL', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["PNG 1", "[]"]


def test_a_name_decides_where_contents_begin_alike(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.ones((4, 4)))
    assert read_image(tmp_path / "a.npz").shape == (4, 4)
    torch.save(torch.ones(4, 5), tmp_path / "b.any")
    assert read_image(tmp_path / "b.any").shape == (4, 5)
    assert codec_named(tmp_path / "a.bmp") is None
