"""FITS: read and written with its header, compressed or not, and what is refused."""

import gzip
import json

import numpy as np
import pytest
import torch

from deconv_cli.errors import MalformedInputError, TooLargeError
from deconv_cli.io import plan_output, read_image

fits = pytest.importorskip("astropy.io.fits")
RNG = np.random.default_rng(5)
STARS = RNG.poisson(200, (20, 24))


def written(path, samples, **cards):
    header = fits.Header({"OBJECT": "M 51", "CRPIX1": 3.0, "CTYPE1": "RA---TAN", "CD1_1": -1e-4} | cards)
    fits.PrimaryHDU(samples, header).writeto(path, overwrite=True)
    return path


def copy(source, target, values=None, n_channels=None, **options):
    image = read_image(source)
    values = image.values.float() if values is None else values
    plan = plan_output(
        target,
        image,
        n_channels=n_channels or image.values.shape[1],
        output_dtype=None,
        force=True,
    )
    prepared = plan.prepare(values)
    prepared.write({"schema": 1, "command": "invert", "rerun": "x"})
    return prepared


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_samples_are_read_as_they_were_written(tmp_path, dtype):
    samples = STARS.clip(0, 255).astype(dtype)
    image = read_image(written(tmp_path / "a.fits", samples))
    assert (image.dtype, image.axes, image.is_picture) == (dtype, "YX", True)
    assert np.array_equal(image.values[0, 0].numpy(), samples)
    assert image.tone_curve is None or not image.tone_curve.is_default


@pytest.mark.parametrize("name", ["b.fits", "b.fits.gz", "b.fits.fz"])
def test_header_and_samples_go_around_exactly(tmp_path, name):
    cube = RNG.normal(0, 1, (3, 20, 24)).astype("float32")
    source = written(tmp_path / "a.fits", cube, BUNIT="adu")
    prepared = copy(source, tmp_path / name)
    assert not prepared.notes
    again = read_image(tmp_path / name)
    assert again.shape == (3, 20, 24)
    assert again.axes == "QYX"
    assert again.record["command"] == "invert"
    assert np.array_equal(again.values[:, 0].numpy(), cube)
    with fits.open(tmp_path / name) as units:
        header = units[-1].header
        assert (header["OBJECT"], header["CRPIX1"], header["BUNIT"]) == ("M 51", 3.0, "adu")
        assert json.loads(header["DECONV"])["output"]["shape"] == [3, 20, 24]
        assert np.array_equal(units[-1].data, cube)


def test_the_first_image_is_read_and_the_others_are_named(tmp_path):
    units = [
        fits.PrimaryHDU(header=fits.Header({"TELESCOP": "2.2m"})),
        fits.ImageHDU(STARS.astype("float32"), fits.Header({"FILTER": "R"}), name="SCI"),
        fits.ImageHDU(STARS.astype("int16"), name="DQ"),
        fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])], name="CAT"),
    ]
    fits.HDUList(units).writeto(tmp_path / "a.fits")
    image = read_image(tmp_path / "a.fits")
    assert "HDU 1 SCI was read, without the other HDUs: 2 DQ, 3 CAT" in image.notes[0]
    assert "TELESCOP" in image.native_fields["FITS header"]
    assert "FILTER" in image.native_fields["FITS header"]
    assert read_image(tmp_path / "a.fits", series=2).dtype == "int16"
    with pytest.raises(MalformedInputError, match=r"HDU 3, but has images in 1, 2"):
        read_image(tmp_path / "a.fits", series=3)
    fits.HDUList([units[0], units[3]]).writeto(tmp_path / "table.fits")
    with pytest.raises(MalformedInputError, match=r"in HDU 0, but holds no image\."):
        read_image(tmp_path / "table.fits")


def test_scaled_and_blank_samples(tmp_path):
    unit = fits.PrimaryHDU(np.array([[1, 2], [3, 4]], "int16"))
    unit.header["BSCALE"], unit.header["BZERO"] = 0.5, 10.0
    path = tmp_path / "a.fits"
    raw = fits.PrimaryHDU(np.array([[1, 2], [3, 4]], "int16"))
    raw.writeto(path)
    content = path.read_bytes()
    card = b"END" + b" " * 77
    scaled = b"BSCALE  =                  0.5".ljust(80) + b"BZERO   =                 10.0".ljust(80) + card
    path.write_bytes(content.replace(card + b" " * 160, scaled, 1))
    assert read_image(path).values[0, 0].tolist() == [[10.5, 11], [11.5, 12]]
    scaled = b"BSCALE  =                  0.5".ljust(80) + b"BLANK   =                    3".ljust(80) + card
    path.write_bytes(content.replace(card + b" " * 160, scaled, 1))
    with pytest.raises(MalformedInputError, match="1 of 4 image samples are NaN"):
        read_image(path)


def test_a_frame_of_another_size_loses_its_coordinates_and_says_so(tmp_path):
    source = written(tmp_path / "a.fits", STARS.astype("float32"))
    prepared = copy(source, tmp_path / "b.fits", torch.zeros(1, 1, 18, 22))
    assert prepared.notes == ("not carried over: world coordinates (the frame has another size)",)
    header = fits.getheader(tmp_path / "b.fits")
    assert "CRPIX1" not in header
    assert "CD1_1" not in header
    assert header["OBJECT"] == "M 51"
    assert copy(source, tmp_path / "b.tif").notes == ("not carried over: FITS header",)


def test_what_no_telescope_writes_is_refused(tmp_path):
    source = written(tmp_path / "a.fits", STARS.astype("float32"))
    content = source.read_bytes()
    for name, hostile in (
        ("short.fits", content[:3000]),
        ("text.fits", content[:100]),
        ("plain.fits.gz", gzip.compress(b"no image")),
    ):
        (tmp_path / name).write_bytes(hostile)
        with pytest.raises(MalformedInputError, match=name):
            read_image(tmp_path / name)
    huge = content.replace(b"NAXIS1  =                   24", b"NAXIS1  =        9999999999999")
    (tmp_path / "huge.fits").write_bytes(huge)
    with pytest.raises((TooLargeError, MalformedInputError), match="huge"):
        read_image(tmp_path / "huge.fits")


def test_other_packed_files_are_not_taken_for_fits(tmp_path):
    path = tmp_path / "y.npy.gz"
    path.write_bytes(gzip.compress(b"\x93NUMPY"))
    with pytest.raises(MalformedInputError, match="is not a supported file"):
        read_image(path)


def test_json_of_another_program_beside_an_array_is_left_alone(tmp_path):
    np.save(tmp_path / "y.npy", np.ones((4, 4), np.float32))
    (tmp_path / "y.npy.json").write_text('{"exposure": 1')
    assert read_image(tmp_path / "y.npy").record is None
