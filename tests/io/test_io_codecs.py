"""Formats describe themselves: what a codec says of itself is all that reading, planning and writing go by."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import Metadata, read_image
from deconv_cli.io.codec import all_codecs, codec_named
from deconv_cli.vocabulary import OutputDType


def test_every_codec_describes_itself():
    codecs = list(all_codecs())
    suffixes = [suffix for codec in codecs for suffix in codec.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)
    assert len({codec.name for codec in codecs}) == len(codecs)
    assert all(codec.carries <= set(Metadata.__dataclass_fields__) for codec in codecs)
    assert all(set(codec.dtypes) <= set(OutputDType) for codec in codecs)
    assert [codec.name for codec in codecs if not codec.is_lossless] == ["JPEG", "AVIF"]


def test_a_name_decides_where_contents_begin_alike(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.ones((4, 4)))
    assert read_image(tmp_path / "a.npz").shape == (4, 4)
    torch.save(torch.ones(4, 5), tmp_path / "b.any")
    assert read_image(tmp_path / "b.any").shape == (4, 5)
    assert codec_named(tmp_path / "a.jp2") is None


class TestFurtherPictures:
    """Formats of everyday: BMP, GIF, AVIF, and the raw files of cameras."""

    @pytest.mark.parametrize(("suffix", "mode"), [(".bmp", "RGB"), (".bmp", "L"), (".gif", "L"), (".gif", "P")])
    def test_samples_are_as_pillow_reads_them(self, tmp_path, rng, suffix, mode):
        picture = Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype("uint8")).convert(mode)
        picture.save(tmp_path / f"in{suffix}")
        expected = np.asarray(picture.convert("RGB" if mode == "P" else mode)).reshape(16, 20, -1)
        found = read_image(tmp_path / f"in{suffix}").values
        if found.shape[1] != expected.shape[-1]:
            expected = expected.repeat(3, axis=-1)
        np.testing.assert_array_equal(found[0].numpy(), np.moveaxis(expected, -1, 0))

    def test_bmp_keeps_its_samples_and_resolution(self, tmp_path, rng, rewrite):
        stored = Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype("uint8"))
        stored.save(tmp_path / "in.bmp", dpi=(300, 300))
        rewrite(tmp_path / "in.bmp", tmp_path / "out.bmp")
        with Image.open(tmp_path / "out.bmp") as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(stored))
            assert picture.info["dpi"] == pytest.approx((300, 300), rel=1e-3)

    def test_gif_is_only_read(self, tmp_path, rng, planned):
        Image.fromarray(rng.integers(0, 255, (16, 20)).astype("uint8")).save(tmp_path / "in.gif")
        source = read_image(tmp_path / "in.gif")
        with pytest.raises(UsageError, match=r"since deconv only reads GIF files; choose \.png or \.tif"):
            planned(tmp_path / "out.gif", source)
        with pytest.raises(UsageError) as refused:
            planned(tmp_path / "out.xyz", source)
        assert ".gif" not in str(refused.value)

    def test_animations_are_refused(self, tmp_path):
        frames = [Image.new("L", (8, 8), value) for value in (0, 99)]
        for suffix in (".gif", ".avif", ".webp", ".png"):
            frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
            with pytest.raises(MalformedInputError, match="animation of 2 frames"):
                read_image(tmp_path / f"a{suffix}")

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
    def test_avif_is_nearly_as_it_was(self, tmp_path, rewrite, mode):
        ramp = np.add.outer(np.arange(16), np.arange(20)).astype("uint8") * 5
        Image.fromarray(np.stack([ramp] * len(mode), -1).squeeze()).save(tmp_path / "in.png")
        prepared, found = rewrite(tmp_path / "in.png", tmp_path / "out.avif")
        assert found.values.shape == (1, 3, 16, 20)
        assert (found.values[0].int() - torch.from_numpy(ramp).int()).abs().max() <= 4
        assert any("AVIF has no gray" in note for note in prepared.notes) == (mode in ("L", "LA"))

    @pytest.mark.parametrize("name", ["a.cr2", "a.tif", "a.NEF", "a.dng"])
    def test_raw_files_of_cameras_are_named_as_such(self, tmp_path, name):
        content = b"II*\0\x10\0\0\0CR\x02\0" + bytes(40) if name in ("a.cr2", "a.tif") else b"II*\0" + bytes(60)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MalformedInputError, match=r"raw camera file, .* 16-bit TIFF"):
            read_image(tmp_path / name)

    def test_a_photograph_of_a_phone_is_named_as_such(self, tmp_path):
        (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
        with pytest.raises(MalformedInputError, match=r"HEIC photograph.* 16-bit TIFF"):
            read_image(tmp_path / "a.HEIC")

    def test_a_mosaic_is_no_picture(self, tmp_path):
        tifffile.imwrite(tmp_path / "m.tif", np.zeros((16, 20), "uint16"), photometric="cfa", metadata=None)
        with pytest.raises(MalformedInputError, match="the mosaic of a camera"):
            read_image(tmp_path / "m.tif")
