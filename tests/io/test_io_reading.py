"""Pictures and tensors of every kind are read as what they are."""

import hashlib
import struct
import zlib
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import read_image
from deconv_cli.io.image import is_result
from deconv_cli.io.tensors import open_data


def planes(array, axes):
    """Sort an array into (B, C, H, W) the slow way, as a judge."""
    batch = [i for i, a in enumerate(axes) if a not in "CSYX"]
    channels = [axes.index(a) for a in "CS" if a in axes]
    moved = np.transpose(array, [*batch, *channels, axes.index("Y"), axes.index("X")])
    n_batch = int(np.prod([array.shape[i] for i in batch]))
    return moved.reshape(n_batch, -1, *moved.shape[-2:])


def assert_values(image, expected):
    assert tuple(image.values.shape) == expected.shape
    np.testing.assert_array_equal(image.values.numpy().astype(np.float64), expected.astype(np.float64))


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_tiff_of_every_type_and_compression(tmp_path, rng, dtype, compression):
    stored = (rng.random((3, 17, 23)) * 100).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="minisblack", compression=compression, metadata={"axes": "CYX"})
    image = read_image(path)
    assert (image.shape, image.axes, image.dtype, image.is_picture) == ((3, 17, 23), "CYX", dtype, True)
    assert image.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_values(image, planes(stored, "CYX"))
    # The to_float64 types are the documented ones.
    assert image.values.dtype == getattr(torch, {"uint16": "int32", "uint32": "int64"}.get(dtype, dtype))


@pytest.mark.parametrize("options", [{"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16)}])
def test_tiff_containers(tmp_path, rng, options):
    stored = rng.integers(0, 60000, (40, 50)).astype("uint16")
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    assert_values(read_image(tmp_path / "a.tif"), stored[None, None])


def test_tiff_written_by_pillow(tmp_path, rng):
    frames = rng.integers(0, 255, (3, 12, 15)).astype("uint8")
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(tmp_path / "p.tif", save_all=True, append_images=others, compression="tiff_lzw")
    image = read_image(tmp_path / "p.tif")
    assert_values(image, frames[:, None])
    assert any('axes="CYX"' in note for note in image.notes)
    assert_values(read_image(tmp_path / "p.tif", axes="CYX"), frames[None])


def test_several_series_are_listed_and_chosen(tmp_path, rng):
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(rng.random((16, 20)).astype("float32"), photometric="minisblack")
        writer.write(rng.random((8, 9)).astype("float32"), photometric="minisblack")
    with pytest.raises(MalformedInputError, match=r"2 series .*series=N"):
        read_image(tmp_path / "s.tif")
    assert read_image(tmp_path / "s.tif", series=1).shape == (8, 9)
    with pytest.raises(UsageError, match="series=2"):
        read_image(tmp_path / "s.tif", series=2)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_of_every_kind(tmp_path, rng, n_samples, dtype):
    stored = rng.integers(0, np.iinfo(dtype).max, (16, 21, n_samples)).astype(dtype)
    stored = stored[..., 0] if n_samples == 1 else stored
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(stored))
    image = read_image(tmp_path / "a.png")
    colors = stored[..., : n_samples - (n_samples in (2, 4))] if n_samples > 1 else stored[..., None]
    assert image.dtype == dtype
    assert_values(image, np.moveaxis(colors, -1, 0)[None])
    assert any("alpha channel was not read" in note for note in image.notes) == (n_samples in (2, 4))


def test_palettes_bits_and_transparent_colors(tmp_path, rng):
    colors = Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype("uint8"))
    paletted = colors.quantize(16)
    paletted.save(tmp_path / "p.png")
    image = read_image(tmp_path / "p.png")
    assert_values(image, np.moveaxis(np.asarray(paletted.convert("RGB")), -1, 0)[None])
    assert any("palette" in note for note in image.notes)
    Image.fromarray(np.eye(9, dtype=bool)).save(tmp_path / "b.png")
    assert_values(read_image(tmp_path / "b.png"), 255 * np.eye(9)[None, None])
    colors.save(tmp_path / "t.png", transparency=(0, 0, 0))
    assert read_image(tmp_path / "t.png").values.shape == (1, 3, 16, 20)


@pytest.mark.parametrize("color_type", [0, 2])
def test_a_transparent_color_of_16_bits_is_no_channel(tmp_path, rng, color_type):
    colors = rng.integers(1, 2**16, (1, 7, 3) if color_type else (1, 7)).astype("uint16")
    colors[0, 0] = 0
    whole = imagecodecs.png_encode(colors)
    chunk = b"tRNS" + bytes(6 if color_type else 2)
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "t.png").write_bytes(whole[:33] + chunk + whole[33:])
    image = read_image(tmp_path / "t.png")
    assert_values(image, np.moveaxis(colors, -1, 0)[None] if color_type else colors[None, None])
    assert "the alpha channel was not read" in image.notes


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("n_samples", [2, 4])
def test_an_opaque_alpha_channel_is_not_spoken_of_and_a_picture_of_one_row_keeps_it(tmp_path, rng, n_samples, dtype):
    stored = rng.integers(0, 99, (1, 7, n_samples)).astype(dtype)
    stored[..., -1] = np.iinfo(dtype).max
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(stored))
    extra = {"photometric": "minisblack" if n_samples == 2 else "rgb", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", stored, extrasamples=["assocalpha"], **extra)
    for name in ("a.png", "a.tif"):
        image = read_image(tmp_path / name)
        assert_values(image, np.moveaxis(stored[..., :-1], -1, 0)[None])
        assert not any("alpha" in note for note in image.notes)
    stored[0, 0, -1] = 3
    tifffile.imwrite(tmp_path / "a.tif", stored, extrasamples=["assocalpha"], **extra)
    assert "the colors are premultiplied by alpha and were used as stored" in read_image(tmp_path / "a.tif").notes


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, rng, suffix, orientation):
    directory = Image.Exif()
    directory[0x0112] = orientation
    source = Image.fromarray(rng.integers(0, 255, (16, 24, 3)).astype("uint8"))
    path = tmp_path / f"o{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, np.asarray(source), extratags=[(274, 3, 1, orientation, True)])
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    else:
        source.save(path, exif=directory.tobytes(), **({"lossless": True} if suffix == ".webp" else {}))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    image = read_image(path)
    assert_values(image, np.moveaxis(expected, -1, 0)[None])
    assert any("orientation" in note for note in image.notes) == (orientation != 1)


def test_cmyk_is_refused(tmp_path):
    Image.new("CMYK", (16, 16)).save(tmp_path / "c.jpg")
    with pytest.raises(MalformedInputError, match=r"CMYK.*magick"):
        read_image(tmp_path / "c.jpg")


def test_the_content_tells_the_format(tmp_path):
    Image.new("L", (16, 12)).save(tmp_path / "a.tif", format="PNG")
    image = read_image(tmp_path / "a.tif")
    assert image.shape == (12, 16)
    assert any("content is PNG" in note for note in image.notes)
    (tmp_path / "x.png").write_text("just a text, long enough")
    with pytest.raises(MalformedInputError, match="TIFF, PNG, JPEG"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("shape", "batch_channels"), [((16, 20), (1, 1)), ((3, 16, 20), (1, 3)), ((2, 3, 16, 20), (2, 3))]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npy", ".npz"])
def test_tensor_files(tmp_path, rng, suffix, shape, batch_channels):
    stored = rng.random(shape).astype("float32")
    path = tmp_path / f"a{suffix}"
    {
        ".pt": lambda: torch.save(torch.from_numpy(stored), path),
        ".safetensors": lambda: save_file({"anything": torch.from_numpy(stored)}, path),
        ".npy": lambda: np.save(path, stored),
        ".npz": lambda: np.savez_compressed(path, anything=stored),
    }[suffix]()
    image = read_image(path)
    assert (image.is_picture, image.shape, image.dtype) == (False, shape, "float32")
    assert_values(image, stored.reshape(*batch_channels, 16, 20))


def test_axes_can_be_named(tmp_path, rng):
    stored = rng.random((16, 20, 3, 2)).astype("float64")
    np.save(tmp_path / "a.npy", stored)
    image = read_image(tmp_path / "a.npy", axes="yxct")
    assert image.axes == "YXCT"
    assert_values(image, planes(stored, "YXCT"))
    for axes in ("YXC", "YXCC", "YYCT", "ABCD", "YX12"):
        with pytest.raises(UsageError, match="axes"):
            read_image(tmp_path / "a.npy", axes=axes)
    np.save(tmp_path / "six.npy", np.zeros((1, 1, 1, 1, 4, 4)))
    with pytest.raises(MalformedInputError, match="axes="):
        read_image(tmp_path / "six.npy")


def test_named_tensors(tmp_path):
    tensors = {"a": torch.ones(4, 4), "b": torch.zeros(3, 4, 4)}
    save_file(tensors, tmp_path / "m.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "m.pt")
    np.savez(tmp_path / "m.npz", **{name: value.numpy() for name, value in tensors.items()})
    for name, prefix in (("m.safetensors", ""), ("m.pt", "state_dict."), ("m.npz", "")):
        with pytest.raises(MalformedInputError, match=r"b \(3, 4, 4\).*tensor=NAME"):
            read_image(tmp_path / name)
        assert read_image(tmp_path / name, tensor=f"{prefix}b").values.shape == (1, 3, 4, 4)
        with pytest.raises(UsageError, match="no tensor named 'c'"):
            read_image(tmp_path / name, tensor="c")


def test_half_precision_and_big_endian(tmp_path):
    torch.save(torch.ones(4, 4, dtype=torch.bfloat16), tmp_path / "h.pt")
    assert read_image(tmp_path / "h.pt").dtype == "bfloat16"
    np.save(tmp_path / "b.npy", np.arange(16, dtype=">i2").reshape(4, 4))
    assert read_image(tmp_path / "b.npy").values[0, 0, 3, 3] == 15


def test_axes_that_were_named_are_not_asked_for(tmp_path, rng):
    tifffile.imwrite(tmp_path / "s.tif", rng.random((5, 16, 20)).astype("float32"), photometric="minisblack")
    assert any('axes="CYX"' in note for note in read_image(tmp_path / "s.tif").notes)
    assert read_image(tmp_path / "s.tif", axes="CYX").notes == ()
    assert read_image(tmp_path / "s.tif", axes="ZYX").notes == (
        "5 planes (axes Z) are processed separately; a kernel of three axes works along Z too",
    )


def test_a_pyramid_says_what_is_left_of_it(tmp_path, rng):
    stored = rng.integers(0, 255, (64, 80)).astype("uint8")
    with tifffile.TiffWriter(tmp_path / "p.ome.tif") as writer:
        writer.write(stored, subifds=2)
        for step in (2, 4):
            writer.write(stored[::step, ::step], subfiletype=1)
    (note,) = read_image(tmp_path / "p.ome.tif").notes
    assert "pyramid" in note
    assert "smaller levels: 2" in note


@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.jpg", "a.webp", "a.tif"])
def test_whether_a_file_is_a_result_is_told_by_its_metadata_alone(tmp_path, rewrite, name):
    wide = np.random.default_rng(1).integers(0, 256, (300, 200, 3)).astype("uint16" if name == "deep.png" else "uint8")
    (tmp_path / "in.png").write_bytes(imagecodecs.png_encode(wide))
    path = tmp_path / name
    rewrite(tmp_path / "in.png", path, output_dtype=str(wide.dtype))
    assert is_result(path)
    assert not is_result(tmp_path / "in.png")
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    assert is_result(path)


def test_samples_of_safetensors_are_read_without_the_others(tmp_path):
    tensors = {"x": torch.arange(40.0).reshape(10, 4), "y": torch.arange(10), "scale": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "data.safetensors")
    opened, whole = open_data(tmp_path / "data.safetensors"), []
    rows = replace(opened, read=lambda name: whole.append(name) or tensors[name]).rows(3, 20)
    assert whole == ["scale"]
    assert torch.equal(rows["x"], tensors["x"][3:])
    assert torch.equal(rows["y"], tensors["y"][3:])
