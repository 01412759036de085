"""Every format keeps samples, axes, metadata and the record."""

import json
import shlex
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, PngImagePlugin

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import read_image
from deconv_cli.vocabulary import OutputDType

RECORD = {"command": "invert", "lambda": 0.01, "text": 'quotes " and λ', "list": [1, 2.5, None]}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SHORT_RECORD = {"command": "invert", "lambda": 0.01}
SUFFIXES = [".tif", ".ome.tif", ".png", ".jpg", ".webp", ".avif", ".bmp", ".pt", ".safetensors", ".npy", ".npz"]
DTYPES = {
    ".png": ["uint8", "uint16"],
    ".jpg": ["uint8"],
    ".webp": ["uint8"],
    ".avif": ["uint8"],
    ".bmp": ["uint8"],
    ".ome.tif": ["uint8", "uint16", "float32", "float64"],
}
CASES = [(s, d) for s in SUFFIXES for d in DTYPES.get(s, [str(word) for word in OutputDType])]


def lost(prepared):
    return " ".join(note for note in prepared.notes if note.startswith("not carried over"))


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize(("suffix", "dtype"), CASES)
def test_samples_and_record(tmp_path, rng, rewrite, suffix, dtype, n_channels):
    stored = rng.integers(0, 255, (16, 20, n_channels)).astype("uint8").squeeze()
    Image.fromarray(stored).save(tmp_path / "in.png")
    target = tmp_path / f"out{suffix}"
    prepared, found = rewrite(tmp_path / "in.png", target, RECORD, output_dtype=OutputDType(dtype))
    assert (found.shape, found.dtype) == (prepared.image.shape, prepared.dtype)
    assert found.dtype == dtype
    described = {"shape": list(found.shape), "dtype": dtype, "samples_sha256": prepared.samples_sha256}
    if suffix in (".png", ".jpg", ".webp", ".avif"):
        assert found.record == {**SHORT_RECORD, "output": {"shape": list(found.shape), "dtype": dtype}}
    else:
        assert found.record == {**RECORD, "output": described}
    source = read_image(tmp_path / "in.png").values
    if suffix in (".jpg", ".avif"):
        assert (found.values.double() - source.double()).abs().mean() < 4
    elif suffix == ".webp":
        assert torch.equal(found.values, source.expand(-1, 3, -1, -1))
    else:
        assert torch.equal(found.values.double(), source.double())
    sidecar = target.with_name(f"{target.name}.json")
    assert sidecar.exists() == (suffix in (".bmp", ".pt", ".npy", ".npz"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {"in.png", target.name} | ({sidecar.name} if sidecar.exists() else set())
    )


def test_feature_maps_never_become_colors(tmp_path, rng, rewrite):
    np.save(tmp_path / "f.npy", rng.random((3, 16, 20)).astype("float32"))
    _, found = rewrite(tmp_path / "f.npy", tmp_path / "f.tif")
    assert found.axes == "CYX"
    with tifffile.TiffFile(tmp_path / "f.tif") as opened:
        assert opened.pages[0].photometric == tifffile.PHOTOMETRIC.MINISBLACK
        assert len(opened.pages) == 3


def test_imagej_fields_survive(tmp_path, imagej_file, rewrite):
    prepared, found = rewrite(imagej_file, tmp_path / "out.tif", RECORD)
    assert found.record["lambda"] == 0.01
    with tifffile.TiffFile(imagej_file) as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
        assert after.is_imagej
        old, new = before.imagej_metadata, after.imagej_metadata
        assert new.pop("Info").splitlines()[:2] == old.pop("Info").splitlines()
        for a, b in zip(new.pop("LUTs"), old.pop("LUTs"), strict=True):
            np.testing.assert_array_equal(a, b)
        assert new == old
        for tag in ("XResolution", "YResolution", "ResolutionUnit"):
            assert after.pages[0].tags[tag].value == before.pages[0].tags[tag].value
    assert not lost(prepared)
    # A second run replaces the record instead of adding another.
    rewrite(tmp_path / "out.tif", tmp_path / "again.tif", {"second": True})
    with tifffile.TiffFile(tmp_path / "again.tif") as opened:
        assert opened.imagej_metadata["Info"].count("deconv:") == 1
    assert read_image(tmp_path / "again.tif").record["second"] is True


def test_fields_that_no_longer_hold_are_named(tmp_path, imagej_file, planned):
    source = read_image(imagej_file)
    prepared = planned(tmp_path / "o.tif", source, n_channels=3).prepare(torch.zeros(6, 3, 16, 20))
    for name in ("Ranges", "LUTs", "Labels"):
        assert f"ImageJ {name}" in lost(prepared)
    prepared.write({})
    assert read_image(tmp_path / "o.tif").axes == "TZCYX"


def test_ome_fields_survive(tmp_path, ome_file, rewrite):
    prepared, found = rewrite(ome_file, tmp_path / "out.ome.tif", RECORD)
    assert not lost(prepared)
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as opened:
        xml = opened.ome_metadata
    for text in (
        *('PhysicalSizeX="0.1"', 'PhysicalSizeXUnit="µm"', 'PhysicalSizeY="0.2"', 'PhysicalSizeZ="1.5"'),
        *('TimeIncrement="0.5"', 'Name="field 3"', "ten &lt; eleven é", 'Name="DAPI"', 'Name="GFP"', 'Name="RFP"'),
    ):
        assert text in xml
    # A type that OME does not know makes a plain TIFF, which keeps the names and the size of a pixel.
    rewrite(ome_file, tmp_path / "plain.tif", output_dtype=OutputDType.FLOAT16)
    with tifffile.TiffFile(tmp_path / "plain.tif") as opened:
        assert not opened.is_ome
    rewrite(tmp_path / "plain.tif", tmp_path / "again.ome.tif", output_dtype=OutputDType.FLOAT32)
    with tifffile.TiffFile(tmp_path / "again.ome.tif") as opened:
        assert 'Name="GFP"' in opened.ome_metadata
        assert 'PhysicalSizeX="0.1"' in opened.ome_metadata
    assert found.record["text"] == RECORD["text"]


INSTRUMENT = (
    '<Instrument ID="Instrument:0"><Microscope Manufacturer="Maker"/><Objective ID="Objective:0:0" LensNA="1.4" '
    'NominalMagnification="63"><AnnotationRef ID="Annotation:7"/></Objective></Instrument>'
)
SETTINGS = (
    "<AcquisitionDate>2024-05-06T07:08:09</AcquisitionDate><Description>&lt;Pixels of é</Description>"
    '<InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0:0" RefractiveIndex="1.518"/>'
)


@pytest.fixture
def microscope_file(tmp_path, rng):
    """OME-TIFF of 12 significant bits with an instrument, as a microscope writes it."""
    path = tmp_path / "cell.ome.tif"
    metadata = {"axes": "CYX", "SignificantBits": 12, "PhysicalSizeX": 0.065, "PhysicalSizeY": 0.065}
    stored = rng.integers(0, 4096, (2, 16, 20)).astype("uint16")
    tifffile.imwrite(path, stored, ome=True, photometric="minisblack", metadata=metadata)
    xml = (
        tifffile.tiffcomment(path).replace("<Image ", INSTRUMENT + "<Image ").replace("<Pixels ", SETTINGS + "<Pixels ")
    )
    tifffile.tiffcomment(path, xml.encode())
    return path


@pytest.mark.parametrize("name", ["out.tif", "out.ome.tif"])
def test_ome_in_is_ome_out_with_its_instrument(tmp_path, microscope_file, rewrite, name):
    prepared, found = rewrite(microscope_file, tmp_path / name, RECORD)
    assert not lost(prepared)
    assert found.record["lambda"] == 0.01
    with tifffile.TiffFile(tmp_path / name) as opened:
        assert opened.is_ome
        root = ElementTree.fromstring(opened.ome_metadata)
    space = {"": root.tag.partition("}")[0].removeprefix("{")}
    assert root.find("Instrument/Objective", space).get("LensNA") == "1.4"
    assert root.find("Instrument/Objective/AnnotationRef", space) is None
    assert root.find("Image/InstrumentRef", space).get("ID") == "Instrument:0"
    assert root.find("Image/ObjectiveSettings", space).get("RefractiveIndex") == "1.518"
    assert root.find("Image/AcquisitionDate", space).text == "2024-05-06T07:08:09"
    assert root.find("Image/Description", space).text == "<Pixels of é"
    pixels = root.find("Image/Pixels", space)
    assert (pixels.get("SignificantBits"), pixels.get("PhysicalSizeX"), pixels.get("Type")) == ("12", "0.065", "float")
    # In the order of the schema.
    assert [element.tag.rpartition("}")[2] for element in root] == ["Instrument", "Image", "StructuredAnnotations"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_resolution_profile_and_exif(tmp_path, rng, rewrite, suffix):
    directory = Image.Exif()
    directory[0x0112], directory[0x010F], directory[0x013B] = 6, "Maker", "An Artist"
    directory.get_ifd(0x8769)[0x829A] = 0.01
    directory.get_ifd(0x8825)[1] = "N"
    source = Image.fromarray(rng.integers(0, 255, (16, 24, 3)).astype("uint8"))
    source.save(
        tmp_path / "in.jpg", dpi=(300, 150), icc_profile=PROFILE, exif=directory.tobytes(), comment=b"a comment"
    )
    prepared, found = rewrite(tmp_path / "in.jpg", tmp_path / f"out{suffix}", RECORD, output_dtype=OutputDType.UINT8)
    assert found.record["lambda"] == 0.01
    assert found.values.shape == (1, 3, 24, 16)
    assert not any("orientation" in note for note in found.notes)
    with Image.open(tmp_path / f"out{suffix}") as picture:
        assert picture.info["icc_profile"] == PROFILE
        exif = picture.getexif()
        assert exif.get(0x0112, 1) == 1
        assert (exif[0x010F], exif[0x013B]) == ("Maker", "An Artist")
        if suffix == ".webp":
            assert "resolution" in lost(prepared)
        else:
            assert [round(float(value)) for value in picture.info["dpi"]] == [150, 300]
        if suffix == ".tif":
            assert "EXIF other than texts" in lost(prepared)
        else:
            assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(0.01)
    assert "comment" in lost(prepared)


def test_png_texts_and_color_chunks(tmp_path, rng, rewrite):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "A title")
    texts.add_itxt("Author", "Jürgen λ")
    texts.add(b"gAMA", (45455).to_bytes(4, "big"))
    texts.add(b"cHRM", bytes(32))
    texts.add(b"cICP", bytes([9, 16, 0, 1]))
    Image.fromarray(rng.integers(0, 255, (16, 20)).astype("uint8")).save(tmp_path / "in.png", pnginfo=texts)
    prepared, _ = rewrite(tmp_path / "in.png", tmp_path / "out.png")
    assert "cHRM" in lost(prepared)
    assert "cICP" in lost(prepared)
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.text["Title"] == "A title"
        assert picture.text["Author"] == "Jürgen λ"
        assert json.loads(picture.text["deconv"])["command"] == "invert"
        assert picture.info["gamma"] == pytest.approx(0.45455)
    prepared, _ = rewrite(tmp_path / "in.png", tmp_path / "out.jpg")
    assert "text Title" in lost(prepared)
    assert "gAMA" in lost(prepared)


def test_tiff_tags(tmp_path, rng, rewrite):
    stored = rng.integers(0, 255, (16, 20)).astype("uint8")
    tags = [(315, 2, 0, "An Artist", True), (33550, 12, 3, (1.0, 1.0, 0.0), True)]
    tifffile.imwrite(
        tmp_path / "in.tif",
        stored,
        description="free text",
        resolution=((300, 1), (601, 2)),
        resolutionunit="inch",
        metadata=None,
        extratags=tags,
        iccprofile=PROFILE,
        photometric="miniswhite",
    )
    prepared, _ = rewrite(tmp_path / "in.tif", tmp_path / "out.tif")
    assert "ModelPixelScaleTag" in lost(prepared)
    with tifffile.TiffFile(tmp_path / "out.tif") as opened:
        page = opened.pages[0]
        assert page.tags["Artist"].value == "An Artist"
        assert (page.tags["XResolution"].value, page.tags["YResolution"].value) == ((300, 1), (601, 2))
        assert page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        assert page.iccprofile == PROFILE
        assert page.description == "free text"
    prepared, _ = rewrite(tmp_path / "in.tif", tmp_path / "out.png")
    assert "white-is-zero" in lost(prepared)


def test_stacks_of_colors_and_planar_colors(tmp_path, rng, rewrite):
    """Alpha is dropped, with a note."""
    stack = rng.integers(0, 255, (4, 16, 20, 4)).astype("uint8")
    tifffile.imwrite(
        tmp_path / "s.tif", stack, photometric="rgb", extrasamples=["unassalpha"], metadata={"axes": "TYXS"}
    )
    assert "the alpha channel was not read" in read_image(tmp_path / "s.tif").notes
    rewrite(tmp_path / "s.tif", tmp_path / "so.tif", output_dtype=OutputDType.UINT8)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "so.tif"), stack[..., :3])
    planar = rng.integers(0, 255, (3, 16, 20)).astype("uint8")
    tifffile.imwrite(tmp_path / "p.tif", planar, photometric="rgb", planarconfig="separate")
    _, found = rewrite(tmp_path / "p.tif", tmp_path / "po.tif", output_dtype=OutputDType.UINT8)
    assert found.axes == "SYX"
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "po.tif"), planar)


def test_a_record_of_other_samples_is_not_believed(tmp_path, rng, rewrite):
    np.save(tmp_path / "in.npy", rng.random((16, 20)))
    rewrite(tmp_path / "in.npy", tmp_path / "out.npy")
    assert read_image(tmp_path / "out.npy").record is not None
    np.save(tmp_path / "out.npy", np.load(tmp_path / "out.npy") + 1)
    assert read_image(tmp_path / "out.npy").record is None
    np.save(tmp_path / "out.npy", np.zeros((8, 8)))
    assert read_image(tmp_path / "out.npy").record is None
    beside = tmp_path / "out.npy.json"
    beside.write_text(beside.read_text().rstrip()[:-1])
    with pytest.raises(MalformedInputError, match=r"out\.npy\.json' .* is damaged"):
        read_image(tmp_path / "out.npy")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif"])
def test_pictures_carry_nothing_of_the_disk(tmp_path, rng, rewrite, suffix):
    """They are shared: what was done is kept in a few bytes, the run and its files are not."""
    Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype("uint8")).save(tmp_path / "in.png")
    record = {
        **{"schema": 1, "command": "invert", "boundary": "zero", "padding": "same", "lambda": 0.01},
        **{"penalty": "gradient", "method": "strip"},
        "inputs": [{"path": str(tmp_path / "in.png")}],
        "kernel": {"path": "holiday/motion.npy", "sha256": "ab" * 32},
        "notes": [f"read from {tmp_path}"],
        "rerun": f"deconv invert --kernel=holiday/motion.npy -- {tmp_path / 'in.png'}",
        "peak_memory_bytes": 10**9,
        "numbers": list(range(5000)),
    }
    _, found = rewrite(tmp_path / "in.png", tmp_path / f"out{suffix}", record)
    content = (tmp_path / f"out{suffix}").read_bytes()
    assert str(tmp_path).encode() not in content
    assert b"holiday" not in content
    assert len(json.dumps(found.record)) < 400
    for name in ("command", "boundary", "padding", "lambda", "penalty", "method"):
        assert found.record[name] == record[name]
    assert found.record["kernel"] == {"sha256": "ab" * 32}
    assert "deconv" not in str(found.metadata)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".safetensors"])
def test_records_in_files_name_no_folders(tmp_path, rng, rewrite, suffix):
    folder = tmp_path / "it's my folder"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 255, (16, 20)).astype("uint8")).save(folder / "in.png")
    words = ["deconv", "invert", f"--kernel={folder / 'k.npy'}", "--layer=a/b", "--force", "--", str(folder / "in.png")]
    record = {
        "inputs": [{"path": str(folder / "in.png")}],
        "kernel": {"path": str(folder / "k.npy"), "sha256": "ab"},
        "notes": [f'"{folder / "k.npy"}" was flipped', f"see https://host{folder / 'k.npy'} and {folder}/other.npy"],
        "rerun": shlex.join(words),
    }
    _, found = rewrite(folder / "in.png", tmp_path / f"out{suffix}", record)
    assert found.record["inputs"] == [{"path": "in.png"}]
    assert found.record["kernel"] == {"path": "k.npy", "sha256": "ab"}
    assert found.record["notes"] == ['"k.npy" was flipped', record["notes"][1]]
    # Without its folders it might confuse two files, so it replaces none.
    assert found.record["rerun"] == "deconv invert --kernel=k.npy --layer=a/b -- in.png"
    kept = {
        **record,
        "kernel": {"path": "k.npy"},
        "inputs": [],
        "notes": [],
        "rerun": "deconv forward --force -- in.png",
    }
    _, found = rewrite(folder / "in.png", tmp_path / f"again{suffix}", kept)
    assert found.record["rerun"] == kept["rerun"]


def test_nan_never_enters_a_record(tmp_path, rng, rewrite):
    np.save(tmp_path / "in.npy", rng.random((16, 20)))
    with pytest.raises(ValueError, match="NaN"):
        rewrite(tmp_path / "in.npy", tmp_path / "out.tif", {"a": float("nan")})
    assert [p.name for p in tmp_path.iterdir()] == ["in.npy"]


def test_compression_goes_by_kind(tmp_path, imagej_file, rewrite):
    rewrite(imagej_file, tmp_path / "ij.tif")
    rewrite(imagej_file, tmp_path / "float.tif", output_dtype=OutputDType.FLOAT64)
    tifffile.imwrite(tmp_path / "in.tif", np.zeros((8, 8), "uint16"))
    rewrite(tmp_path / "in.tif", tmp_path / "plain.tif", output_dtype=OutputDType.UINT16)
    found = {}
    for name in ("ij", "float", "plain"):
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as opened:
            found[name] = opened.pages[0].compression.name
    assert found == {"ij": "NONE", "float": "NONE", "plain": "ADOBE_DEFLATE"}
