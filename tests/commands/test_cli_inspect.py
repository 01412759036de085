"""`deconv inspect`: every fact is computed again here."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.parts import BOUNDARIES


def entry_of(run):
    (file,) = run.report["files"]
    (entry,) = file["entries"]
    return entry


def test_a_picture(deconv, tmp_path):
    path = tmp_path / "picture.png"
    info = PngInfo()
    info.add_text("Artist", "Somebody")
    samples = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    Image.fromarray(samples).save(path, pnginfo=info, dpi=(300, 300))
    run = deconv("inspect", path, "--json")
    entry = entry_of(run)
    assert (entry["kind"], entry["shape"], entry["axes"], entry["dtype"]) == ("image", [9, 7, 3], "YXS", "uint8")
    assert (entry["minimum"], entry["maximum"]) == (samples.min(), samples.max())
    assert entry["mean"] == pytest.approx(samples.mean())
    assert entry["standard_deviation"] == pytest.approx(samples.std())
    assert (entry["samples"], entry["nan"], entry["infinite"], entry["kernel"]) == (189, 0, 0, None)
    metadata = run.report["files"][0]["metadata"]
    assert metadata["other"] == {"text Artist": "Somebody"}
    assert metadata["resolution"]["x"] == pytest.approx(300, rel=1e-3)
    assert metadata["resolution"]["pixels_per"] == "inch"
    table = deconv("inspect", path)
    assert "9×7×3 YXS uint8" in table.stdout
    assert "Artist Somebody" in table.stdout
    assert "pixels per inch" in table.stdout
    assert table.stderr == ""


def test_the_distances_of_a_stack_have_a_unit(deconv, tmp_path):
    path, metadata = tmp_path / "stack.tif", {"axes": "ZYX", "spacing": 0.3, "unit": "um"}
    tifffile.imwrite(path, np.zeros((4, 8, 9), "uint8"), imagej=True, resolution=(10, 5), metadata=metadata)
    assert " ".join(deconv("inspect", path).stdout.split()).count("spacing 0.3 × 0.2 × 0.1 µm") == 1
    assert deconv("inspect", path, "--json").report["files"][0]["metadata"]["plane_distance"] == 0.3


def test_samples_that_are_not_finite_are_counted(deconv, save):
    x = np.arange(24, dtype=np.float64).reshape(4, 6)
    x[0, 0], x[1, 1], x[2, 2] = np.nan, np.inf, -np.inf
    path = save("x", x)
    run = deconv("inspect", path, "--json")
    entry = entry_of(run)
    assert (entry["nan"], entry["infinite"], entry["samples"]) == (1, 2, 24)
    finite = x[np.isfinite(x)]
    assert (entry["minimum"], entry["maximum"]) == (1, 23)
    assert entry["mean"] == pytest.approx(finite.mean())
    assert "3 of 24 samples are not finite (1 NaN, 2 infinite)" in deconv("inspect", path).stderr
    empty = deconv("inspect", save("nothing", np.full((2, 2), np.nan)), "--json")
    assert entry_of(empty)["minimum"] is None


def test_a_kernel(deconv, save):
    """A kernel that shifts: its weight lies one down and half across of the middle."""
    taps = np.zeros((1, 1, 3, 4))
    taps[0, 0, 2, 1], taps[0, 0, 2, 2] = 1.5, 1.5
    entry = entry_of(deconv("inspect", save("k", taps), "--size", "16,20", "--json"))
    kernel = entry["kernel"]
    assert entry["kind"] == "kernel"
    assert kernel["origin"] == [1, 1]
    assert kernel["centroid_offset"] == pytest.approx([1, 0.5])
    assert (kernel["dc_gain"], kernel["convention"], kernel["is_symmetric"]) == (3, "correlation", False)
    values = np.abs(np.fft.fft2(taps[0, 0], (16, 20)))
    assert kernel["spectrum"]["sigma_max"] == pytest.approx(values.max())
    assert kernel["spectrum"]["sigma_min"] == pytest.approx(values.min(), abs=1e-12)
    assert kernel["spectrum"]["image_size"] == [16, 20]
    assert [border["boundary"] for border in kernel["borders"]] == list(BOUNDARIES)


def test_each_border_has_its_judgment(deconv, save):
    """Under zeros a kernel that looks one row ahead loses the last row of its images; on a torus it loses nothing."""
    shift = np.zeros((1, 1, 3, 1), np.float32)
    shift[0, 0, 2] = 1
    shift[0, 0, 1] = 0.1
    borders = entry_of(deconv("inspect", save("k", shift), "--size", "12,8", "--json"))["kernel"]["borders"]
    found = {border["boundary"]: border["well_posedness"]["is_well_posed"] for border in borders}
    assert found["circular"] is found["unknown"] is True
    assert found["zero"] is False
    wide = save("wide", np.random.default_rng(0).random((1, 1, 9, 9)))
    run = deconv("inspect", wide, "--size", "4,4", "--json")
    possible = {border["boundary"]: border["is_possible"] for border in entry_of(run)["kernel"]["borders"]}
    assert possible["zero"] is possible["symmetric"] is True
    assert possible["reflect"] is False
    table = " ".join(deconv("inspect", wide, "--size", "4,4").stdout.split())
    assert "reflect: not possible: a kernel of 9×9 reaches" in table


def test_layers_of_a_network_are_kernels_and_the_rest_are_not(deconv, samples_folder):
    run = deconv("inspect", samples_folder / "network.safetensors", "--json")
    kinds = {entry["name"]: entry["kind"] for entry in run.report["files"][0]["entries"]}
    assert {name for name, kind in kinds.items() if kind == "kernel"} == {"first.weight", "second.weight"}
    assert kinds["first.bias"] == kinds["head.weight"] == "tensor"
    one = entry_of(deconv("inspect", samples_folder / "network.safetensors", "--tensor", "second", "--json"))
    assert one["name"] == "second.weight"
    assert one["kernel"]["channels"] == [4, 4]
    assert one["kernel"]["has_bias"] is True


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("taps", (2, 2, 3, 3), "kernel"),
        ("image", (2, 2, 3, 3), "image"),
        ("x", (3, 8, 8), "image"),
        ("v", (5,), "tensor"),
    ],
)
def test_what_a_bare_tensor_is_taken_for(deconv, tmp_path, name, shape, kind):
    path = tmp_path / "t.safetensors"
    save_file({name: torch.rand(shape)}, path)
    assert entry_of(deconv("inspect", path, "--json"))["kind"] == kind


def test_as_overrides(deconv, save, samples_folder):
    path = save("t", np.random.default_rng(0).random((2, 2, 3, 3)))
    assert entry_of(deconv("inspect", path, "--as", "image", "--json"))["kind"] == "image"
    psf = samples_folder / "gaussian_psf.png"
    assert entry_of(deconv("inspect", psf, "--json"))["kernel"] is None
    kernel = entry_of(deconv("inspect", psf, "--as", "kernel", "--json"))["kernel"]
    assert (kernel["convention"], kernel["size"], kernel["is_symmetric"]) == ("convolution", [11, 11], True)
    assert kernel["dc_gain"] == pytest.approx(1)
    assert any("divided by their sum" in note for note in kernel["notes"])
    kept = entry_of(deconv("inspect", psf, "--as", "kernel", "--no-normalize", "--json"))["kernel"]
    assert kept["dc_gain"] > 1000


def test_a_kernel_that_cannot_be_one_is_told_apart(deconv, refuses, save):
    zeros = deconv("inspect", save("zeros", np.zeros((1, 1, 3, 3))))
    assert "all taps are zero" in zeros.stderr
    nan = save("nan", np.full((1, 1, 3, 3), np.nan))
    assert entry_of(deconv("inspect", nan, "--json"))["kernel"] is None
    refuses("inspect", save("x", np.ones((3, 8, 8))), "--as", "kernel", code=ExitCode.INPUT_REFUSED, says="(3, 8, 8)")


def test_what_deconv_wrote_tells_how(deconv, gray, gentle, tmp_path):
    deconv("forward", gray, "-k", gentle, "-o", tmp_path / "y.tif")
    run = deconv("inspect", tmp_path / "y.tif", "--json")
    assert run.report["files"][0]["made_by"].startswith("deconv forward --kernel=")


def test_several_files_and_failures_among_them(deconv, refuses, gray, save, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    good = save("x", np.ones((4, 4)))
    run = deconv("inspect", gray, bad, good, "--json", expect=ExitCode.UNTRUSTWORTHY)
    assert [file["path"] for file in run.report["files"]] == [str(gray), str(good)]
    assert [failure["path"] for failure in run.report["failed"]] == [str(bad)]
    refuses("inspect", bad, code=ExitCode.INPUT_REFUSED, says=str(bad))
    deconv("inspect", bad, bad, expect=ExitCode.INPUT_REFUSED)
    refuses("inspect", tmp_path / "none.png", code=ExitCode.USAGE, says="does not exist")
    refuses("inspect", gray, "--size", "8x8", code=ExitCode.USAGE, says="H,W")
    refuses("inspect", gray, "--tensor", "x", code=ExitCode.USAGE, says="--tensor")
    refuses("inspect", gray, "--series", "0", code=ExitCode.USAGE, says="--series")
    refuses("inspect", good, "--tensor", "x", code=ExitCode.USAGE, says="leave out --tensor x")


def test_one_layer_that_cannot_be_undone_hides_no_other(deconv, refuses, tmp_path):
    """The weights of a transposed layer are (C_in, C_out, kH, kW), so that its bias does not fit them."""
    path = tmp_path / "model.pt"
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ConvTranspose2d(4, 2, 3), torch.nn.Conv2d(2, 2, 3)]
    torch.save(torch.nn.Sequential(*layers).state_dict(), path)
    (file,) = deconv("inspect", path, "--json").report["files"]
    found = {entry["name"]: entry for entry in file["entries"]}
    assert found["0.weight"]["kernel"]["channels"] == [1, 4]
    assert found["2.weight"]["kernel"]["channels"] == [2, 2]
    assert found["1.weight"]["kernel"] is None
    assert "bias" in found["1.weight"]["kernel_refusal"]
    assert found["0.weight"]["kernel_refusal"] is None
    table = deconv("inspect", path)
    assert f"warning: 1.weight: {found['1.weight']['kernel_refusal']}" in table.stderr.splitlines()
    assert "all taps are zero" not in table.stderr
    refuses("inspect", path, "--tensor", "1", code=ExitCode.INPUT_REFUSED, says="bias")


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_a_result_of_four_axes_is_no_kernel(deconv, save, gentle, tmp_path, suffix):
    output = tmp_path / f"y{suffix}"
    deconv("forward", save("x", np.random.default_rng(0).random((2, 3, 12, 14))), "-k", gentle, "-o", output)
    assert entry_of(deconv("inspect", output, "--json"))["kind"] == "image"
    output.with_name(f"{output.name}.json").unlink()
    assert entry_of(deconv("inspect", output, "--json"))["kind"] == "kernel"


def test_blocks_of_bytes_are_only_measured(deconv, tmp_path):
    path = tmp_path / "stack.tif"
    metadata = {"axes": "CYX", "LUTs": [np.arange(768, dtype="uint8").reshape(3, 256)] * 6, "Labels": list("abcdef")}
    metadata |= {"ROI": b"Iout" + bytes(100), "Overlays": [b"Iout" + bytes(60)] * 2}
    tifffile.imwrite(path, np.zeros((6, 16, 20), "uint8"), imagej=True, metadata=metadata)
    other = deconv("inspect", path, "--json").report["files"][0]["metadata"]["other"]
    assert other["ImageJ LUTs"] == "3×256 uint8, 3×256 uint8, 3×256 uint8, 3×256 uint8 and 2 more"
    assert other["ImageJ ROI"] == "104 bytes"
    assert other["ImageJ Overlays"] == "64 bytes, 64 bytes"
    assert other["ImageJ Labels"] == "a, b, c, d and 2 more"
    assert "Iout" not in deconv("inspect", path).stdout


def test_a_whole_module_is_listed_with_what_its_layers_do(deconv, tmp_path):
    """Its layers state what a state dict cannot: which layers are no plain convolutions."""
    path = tmp_path / "model.pt"
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ConvTranspose2d(4, 4, 3, stride=2), torch.nn.Conv2d(4, 2, 3, stride=2)]
    torch.save(torch.nn.Sequential(*layers), path)
    (file,) = deconv("inspect", path, "--json").report["files"]
    found = {entry["name"]: entry for entry in file["entries"]}
    assert found["0.weight"]["kernel"]["channels"] == [1, 4]
    for name, words in (("1.weight", "transposed"), ("2.weight", "stride 2")):
        assert found[name]["kernel"] is None
        assert words in found[name]["kernel_refusal"]


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".zarr"])
def test_of_a_large_array_pieces_are_read(deconv, refuses, tmp_path, monkeypatch, suffix):
    samples = np.arange(600 * 500, dtype=np.float32).reshape(600, 500)
    path = tmp_path / f"x{suffix}"
    writers = {
        ".npy": lambda: np.save(path, samples),
        ".tif": lambda: tifffile.imwrite(path, samples),
        ".zarr": lambda: pytest.importorskip("zarr").save_array(path, samples),
    }
    writers[suffix]()
    whole = deconv("inspect", path, "--json").report["files"][0]
    monkeypatch.setattr("deconv_cli.io.file_inspection.MAX_WHOLE_BYTES", 2**20)
    monkeypatch.setattr("deconv_cli.io.regions.MAX_SAMPLES", 64)
    run = deconv("inspect", path, "--json")
    file, entry = run.report["files"][0], entry_of(run)
    assert (file["sha256"] is None, whole["sha256"] is None) == (True, False)
    assert (entry["is_sampled"], whole["entries"][0]["is_sampled"]) == (True, False)
    assert {name: entry[name] for name in ("kind", "shape", "axes", "dtype")} == {
        name: whole["entries"][0][name] for name in ("kind", "shape", "axes", "dtype")
    }
    assert entry["samples"] == 64 * 64
    assert entry["mean"] == pytest.approx(samples.mean(), rel=0.1)
    assert samples.min() <= entry["minimum"] < entry["maximum"] <= samples.max()
    assert "come from 4096 of 300000 samples, in 64 pieces" in file["notes"][-1]
    assert "range of pieces" in deconv("inspect", path).stdout
    refuses("inspect", path, "--as", "kernel", code=ExitCode.INPUT_REFUSED, says="more than the 1 MiB of the largest")


def test_long_values_are_cut_to_the_width_and_whole_in_the_report(deconv, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "70")
    words, info = "begin " + "word " * 20 + "end", PngInfo()
    info.add_text("Comment", words)
    Image.new("L", (4, 4)).save(tmp_path / "x.png", pnginfo=info)
    lines = deconv("inspect", tmp_path / "x.png").stdout.splitlines()
    assert any("…" in line for line in lines)
    assert max(map(len, lines[1:])) <= 70
    assert words in deconv("inspect", tmp_path / "x.png", "--json").stdout
