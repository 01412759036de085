"""`deconv kernel microscope` and `--kernel microscope`."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.microscope_kernel import describe_optics
from deconv_cli.errors import UsageError
from deconv_cli.io import read_image
from deconv_cli.models.kernel_files import read_kernel

OBJECTIVE = (
    '<Instrument ID="Instrument:0"><Objective ID="Objective:0" LensNA="1.1" Immersion="Water"/>'
    '<Objective ID="Objective:1" LensNA="0.5" Immersion="Air"/></Instrument>'
)


@pytest.fixture
def stack(tmp_path):
    """An OME-TIFF of two channels of a stack whose objective, wavelengths and spacing are in its metadata."""
    path = tmp_path / "cells.ome.tif"
    samples = np.random.default_rng(0).integers(100, 1000, (2, 6, 24, 25)).astype(np.uint16)
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(
            samples,
            photometric="minisblack",
            metadata={
                "axes": "CZYX",
                "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.25,
                "Channel": {"Name": ["green", "red"], "EmissionWavelength": [520, 610],
                            "EmissionWavelengthUnit": ["nm", "nm"]},
            },
        )  # fmt: skip
    xml = tifffile.tiffcomment(path)
    before, found, after = xml.partition("<Image ")
    xml = before + OBJECTIVE + found + after
    before, found, after = xml.partition("<Pixels ")
    tifffile.tiffcomment(path, (before + '<ObjectiveSettings ID="Objective:0"/>' + found + after).encode())
    return path


def confocal(path, channels, instrument, settings='<ObjectiveSettings ID="Objective:2"/>'):
    """Write a picture whose description has these elements, as programs of microscopes do; sizes are in nanometers."""
    samples = np.zeros((len(channels), 20, 21), np.uint16)
    listed = "".join(
        f'<Channel ID="Channel:0:{number}" SamplesPerPixel="1" {fields}>{inside}</Channel>'
        for number, (fields, inside) in enumerate(channels)
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Instrument ID="Instrument:0">{instrument}</Instrument><Image ID="Image:0">{settings}<Pixels '
        'DimensionOrder="XYZCT" ID="Pixels:0" PhysicalSizeX="100" PhysicalSizeXUnit="nm" PhysicalSizeY="1000" '
        f'PhysicalSizeYUnit="\u212b" SizeC="{len(channels)}" SizeT="1" SizeX="21" SizeY="20" SizeZ="1" Type="uint16">'
        f'{listed}<TiffData IFD="0" PlaneCount="{len(channels)}"/></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, samples, photometric="minisblack", metadata=None, description=xml.encode())
    return read_image(path).spanned_by(2)


SEVERAL = (
    '<Laser ID="LightSource:1" Wavelength="640"/><Objective ID="Objective:1" LensNA="0.4" Immersion="Air"/>'
    '<Objective ID="Objective:2" LensNA="1.3" Immersion="Other"/>'
)


def test_a_channel_of_transmitted_light_is_named(tmp_path):
    channels = [(f'EmissionWavelength="{length}"', "") for length in (676, 509)]
    image = confocal(tmp_path / "a.ome.tif", [*channels, ("", "")], SEVERAL)
    said = r"emission of channel 3; give the values of all channels with the word emission, as 676\+509\+NM"
    with pytest.raises(UsageError, match=said):
        describe_optics(image, {})


def test_units_light_sources_and_fields_as_programs_write_them(tmp_path):
    """Whole numbers without a unit, micrometers in two letters, angstroms in two signs, and lasers elsewhere."""
    pinhole = 'AcquisitionMode="LaserScanningConfocalMicroscopy" PinholeSize="50" PinholeSizeUnit="µm"'
    channels = [
        (f'{pinhole} Name="Ch1" EmissionWavelength="520" ExcitationWavelength="488"', ""),
        (f'{pinhole} Name="Ch2" EmissionWavelength="0.61" EmissionWavelengthUnit="\u03bcm"',
         '<LightSourceSettings ID="LightSource:0" Wavelength="5610" WavelengthUnit="\u00c5"/>'),
        (f'{pinhole} EmissionWavelength="668"', '<LightSourceSettings ID="LightSource:1"/>'),
        (f'{pinhole} EmissionWavelength="461" ExcitationWavelength="0.405" ExcitationWavelengthUnit="µm"', ""),
    ]  # fmt: skip
    image = confocal(
        tmp_path / "a.ome.tif", channels, SEVERAL, '<ObjectiveSettings ID="Objective:2" Medium="Glycerol"/>'
    )
    microscopes, assumed = describe_optics(image, {})
    assert [m.emission for m in microscopes] == pytest.approx([520, 610, 668, 461])
    assert [m.excitation for m in microscopes] == pytest.approx([488, 561, 640, 405])
    assert {(m.numerical_aperture, m.immersion_index, m.mode) for m in microscopes} == {(1.3, 1.47, "confocal")}
    assert microscopes[0].spacing == pytest.approx((0.1, 0.1))
    assert assumed == (
        "assumed: a sample of the same refractive index as the immersion",
        "assumed: a pinhole of one Airy unit, since the file gives its diameter, but not its magnification",
    )


def test_what_has_no_model_or_is_missing_is_named(tmp_path):
    channels = [(f'EmissionWavelength="520" {mode}', "") for mode in ("", 'AcquisitionMode="TIRF"')]
    image = confocal(tmp_path / "a.ome.tif", [*channels, ('EmissionWavelength="7" EmissionWavelengthUnit="inch"', "")],
                     SEVERAL)  # fmt: skip
    with pytest.raises(UsageError, match="wavelength of 100 to 3000 nm"):
        describe_optics(image, {})
    image = confocal(tmp_path / "b.ome.tif", channels, SEVERAL)
    microscopes, assumed = describe_optics(image, {})
    assert [m.immersion_index for m in microscopes] == [1.515] * 2
    assert assumed[:2] == (
        "assumed: mode widefield for channel 1 (the file says none) and 2 (TIRF, of which there is no model)",
        "assumed: refractive index 1.515 of the immersion, usual for this numerical aperture",
    )
    image = confocal(tmp_path / "c.ome.tif", channels, SEVERAL, "")
    with pytest.raises(
        UsageError, match="which lists 2 objectives without naming the one that was used; add the word na"
    ):
        describe_optics(image, {})


def test_every_channel_gets_its_kernel_and_what_was_assumed_is_listed(deconv, stack, tmp_path):
    target = tmp_path / "sharp.ome.tif"
    options = ["--lambda", "1e-2", "--boundary", "circular"]
    done = deconv("invert", stack, "--kernel", "microscope", "-o", target, "--json", *options,
                  expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))  # fmt: skip
    report = done.report
    assert report["kernel"]["shape"][0] == 2
    assert len(report["kernel"]["shape"]) == 4
    assert any(note.startswith("assumed: mode widefield") for note in report["notes"])
    assert any("emission 520, 610 nm" in note for note in report["notes"])
    written = read_image(target).spanned_by(3)
    assert written.values.shape == (1, 2, 6, 24, 25)
    assert written.spacing == pytest.approx((0.25, 0.1, 0.1))
    assert written.native_fields["OME channel EmissionWavelength"] == ["520", "610"]
    forward = deconv("forward", stack, "--kernel", "microscope:mode=light-sheet,sheet=1", "-o", tmp_path / "y.tif",
                     "--json")  # fmt: skip
    assert not any("mode widefield" in note for note in forward.report["notes"])


def test_the_command_writes_a_kernel(deconv, stack, tmp_path):
    words = "na=1.1,emission=520,immersion=1.333"
    done = deconv("kernel", "microscope", words, "--spacing", "0.25,0.1,0.1", "--size", "7,9,9", "-o",
                  tmp_path / "psf.tif", "--json")  # fmt: skip
    assert done.report["shape"] == [7, 9, 9]
    psf = tifffile.imread(tmp_path / "psf.tif")
    assert psf.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.unravel_index(psf.argmax(), psf.shape) == (3, 4, 4)
    again = deconv("kernel", "microscope", "--image", stack, "--size", "7,9,9", "-o", tmp_path / "again.tif", "-q")
    assert again.stdout.strip() == str(tmp_path / "again.tif")
    assert np.abs(tifffile.imread(tmp_path / "again.tif") - psf).max() < 1e-7
    assert read_image(tmp_path / "again.tif").spanned_by(3).spacing == pytest.approx((0.25, 0.1, 0.1))
    red = deconv("kernel", "microscope", "--image", stack, "--channel", 1, "--json").report
    assert red["microscope"]["emission"] == 610


def test_computed_light_at_the_rim_is_no_background(deconv, tmp_path):
    path, copy, words = tmp_path / "psf.tif", tmp_path / "copy.tif", "na=1.2,emission=520"
    deconv("kernel", "microscope", words, "--spacing", "0.3,0.1,0.1", "--size", "25,33,33", "-o", path)
    assert (read_kernel(path).refusal, read_kernel(path).picture_notes) == (None, ())
    tifffile.imwrite(copy, tifffile.imread(path))  # without the record
    assert "background" in read_kernel(copy).refusal


def test_spacing_is_that_of_a_file_without_metadata_and_words_may_be_capitals(deconv, refuses, tmp_path):
    plain = tmp_path / "plain.tif"
    samples = np.random.default_rng(0).integers(100, 1000, (4, 20, 21)).astype(np.uint16)
    tifffile.imwrite(plain, samples, photometric="minisblack")
    words = ["--kernel", "microscope:NA=1.1,Emission=520,immersion=1.333", "--dimensions", "3", "--lambda", "0.1"]
    done = deconv("invert", plain, *words, "--spacing", "0.25,0.1,0.1", "-o", tmp_path / "x.tif", "--json",
                  expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))  # fmt: skip
    assert done.report["kernel"]["shape"] == [7, 39, 41]
    assert any("0.25 × 0.1 × 0.1 µm apart" in note for note in done.report["notes"])
    assert any("outermost of the kernel's 7 planes keeps" in note for note in done.report["notes"])
    refuses("invert", plain, *words, "--spacing", "0.1,0.1", "-o", tmp_path / "y.tif", code=ExitCode.USAGE,
            says="must hold a distance in µm for each of 3 axes")  # fmt: skip


def test_refusals(refuses, stack, gray, gentle, tmp_path):
    target = tmp_path / "x.tif"

    def refused(*words, says):
        refuses(*words, code=ExitCode.USAGE, says=says)

    spacing = "--spacing DZ,DY,DX or DY,DX to deconv invert or deconv kernel microscope"
    for command in ("invert", "forward"):
        refused(command, gray, "--kernel", "microscope", "-o", target, says=spacing)
    refused("invert", stack, "--kernel", "microscope:power=9", "-o", target, says="one part is 'power=9'")
    refused("invert", stack, "--kernel", "microscope", "--kernel", gentle, "-o", target, says="leave it out")
    two = ["--kernel", "microscope:na=1.1", "--kernel", "disk:3"]
    refused("invert", stack, *two, "-o", target, says="--kernel disk:3 has no effect")
    refused("invert", stack, "--kernel", "microscope", "--layer", "a", "-o", target, says="--layer has no effect")
    refused(
        "kernel", "microscope", "na=1.1", "--spacing", "0.1,0.1", says="the wavelength of the emission is not known"
    )
    refused("kernel", "microscope", "emission=520", "--spacing", "0.1,0.1", says="numerical aperture is not known")
    refused("kernel", "microscope", "oil", "--spacing", "0.1,0.1", says="as in “na=1.4,emission=520”, with the names")
    refused("kernel", "microscope", "na=a,emission=520", "--spacing", "0.1,0.1", says="must be a number")
    refused("kernel", "microscope", "na=1.1,emission=520+600+700", "--image", stack, says="given for 3 channels")
    refused("kernel", "microscope", "na=1,emission=520", "--spacing", "0.1", says="--spacing must hold 2 or 3 numbers")


def test_richardson_lucy_takes_the_whole_kernel(deconv, stack, tmp_path, monkeypatch):
    seen = []

    def load(request, *_):
        seen.append(request.is_compact)
        raise UsageError("enough.")

    monkeypatch.setattr("deconv_cli.commands.kernel_request.KernelRequest.of", load)
    words = ["invert", stack, "-k", "microscope", "--method", "richardson-lucy", "-o", tmp_path / "x.ome.tif"]
    deconv(*words, expect=ExitCode.USAGE)
    assert set(seen) == {False}
