"""Stacks, signals and Zarr at the prompt: the output has the format of the input, and wrong axes are one sentence."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from io_cases import imagej, ome
from torch.nn import functional

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.input_files import expand
from deconv_cli.io import read_image

SIZE = (6, 10, 12)


def npy(path, array, axes="ZYX"):
    np.save(path, array)
    return path


FORMATS = {"s.ome.tif": ome, "s.tif": imagej, "s.npy": npy}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def taps(rng):
    """A well-conditioned kernel of three axes, symmetric along none of them."""
    weights = rng.random((3, 4, 3))
    weights *= 0.25 / weights.sum()
    weights[1, 1, 1] += 0.75
    return weights.astype("float32")


@pytest.fixture
def psf(tmp_path, taps):
    """The same as a multi-page TIFF, which is a true convolution."""
    path = tmp_path / "psf.tif"
    tifffile.imwrite(path, taps[::-1, ::-1, ::-1], photometric="minisblack", metadata=None)
    return path


def blurred(stack, taps):
    """Convolve `(*batch, D, H, W)` with a torus around it."""
    x = torch.from_numpy(stack.astype("float64")).reshape(-1, 1, *stack.shape[-3:])
    pads = [p for n in reversed(taps.shape) for p in ((n - 1) // 2, n // 2)]
    y = functional.conv3d(functional.pad(x, pads, mode="circular"), torch.from_numpy(taps).double()[None, None])
    return y.reshape(stack.shape).numpy()


@pytest.mark.parametrize("name", FORMATS)
def test_a_stack_goes_through_forward_and_invert_and_keeps_what_its_file_says(tmp_path, deconv, rng, taps, psf, name):
    stack = (100 * rng.random(SIZE)).astype("float32")
    source = FORMATS[name](tmp_path / name, stack)
    run = deconv("forward", source, "--kernel", psf, "--boundary", "circular", "--json").report
    assert (run["kernel"]["shape"], run["kernel"]["convention"]) == ([3, 4, 3], "convolution")
    first = read_image(tmp_path / run["output"]["path"])
    assert first.path.name == name.replace("s.", "s_forward.", 1)
    np.testing.assert_allclose(first.spanned_by(3).values[0, 0], blurred(stack, taps), rtol=1e-5)
    done = deconv("invert", first.path, "--kernel", psf, "--lambda", "1e-9", "--noise", "white", "--json")
    again = read_image(tmp_path / done.report["output"]["path"])
    # Of a bare array the record of `forward` is the first to say that its axes are those of a stack.
    axes = "ZYX" if name == "s.npy" else read_image(source).axes
    assert (again.axes, again.shape) == (axes, SIZE)
    np.testing.assert_allclose(again.spanned_by(3).values[0, 0], stack, atol=2e-2)
    if name.endswith(".tif"):
        stored = read_image(source)
        assert again.metadata.density == stored.metadata.density
        assert again.metadata.flavor == stored.metadata.flavor
        assert done.report["inputs"][0]["spacing"] == pytest.approx([0.5, 0.2, 0.1])
        assert "6×10×12 ZYX float32, 0.5 × 0.2 × 0.1 µm" in done.stderr
        assert "--spacing=5.0,2.0,1.0" in done.report["rerun"]


def test_a_tensor_of_three_axes_spans_a_stack_that_has_depth(tmp_path, deconv, save, rng, taps):
    kernel = save("k", taps)
    stack = rng.random(SIZE).astype("float32")
    source = imagej(tmp_path / "s.tif", stack)
    run = deconv("forward", source, "--kernel", kernel, "--boundary", "circular", "-o", tmp_path / "o.tif", "--json")
    assert any("spans the axes Z, Y, X" in note and "--dimensions 2" in note for note in run.report["notes"])
    assert "--dimensions 2 reads it as a kernel of planes for each channel" in run.stderr
    np.testing.assert_allclose(tifffile.imread(tmp_path / "o.tif"), blurred(stack, taps), rtol=1e-5)
    again = shlex.split(run.report["rerun"])[1:]
    assert "--dimensions=3" in again
    deconv(*again)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "o.tif"), blurred(stack, taps), rtol=1e-5)


def test_wrong_axes_are_one_sentence(tmp_path, refuses, save, rng, psf, taps):
    film = imagej(tmp_path / "film.tif", rng.random(SIZE).astype("float32"), "TYX")
    plane, stack, kernel = save("plane", np.ones((8, 8))), save("stack", np.ones(SIZE)), save("k", taps)

    def refused(*words, says, code=ExitCode.USAGE):
        refuses(*words, "-o", tmp_path / "o.safetensors", code=code, says=says)

    says = ["spans 3 axes (ZYX)", "has axes TYX", "--axes ZYX"]
    refused("invert", film, "--kernel", psf, says=says, code=ExitCode.INPUT_REFUSED)
    says = ["spans 3 axes", "has axes YX; give a kernel with 2 axes."]
    refused("invert", plane, "--kernel", psf, says=says, code=ExitCode.INPUT_REFUSED)
    says = ["is for 3 channels", "--dimensions 3"]
    refused("forward", stack, "--kernel", kernel, says=says, code=ExitCode.INPUT_REFUSED)
    refused("forward", stack, "--kernel", kernel, "--axes", "ZYYX", says="axes 'ZYYX'")
    says = "give a file of taps with 2, or leave --dimensions out"
    refused("forward", stack, "--kernel", "gaussian3d:1@1", "--dimensions", "2", says=says)
    layer = save("layer", np.ones((4, 2, 3, 3)))
    says = "was read as one of 3 axes for each of 4 channels, which has no groups"
    words = ("--kernel", layer, "--groups", "2", "--dimensions", "3")
    refused("forward", save("x", np.ones((4, *SIZE))), *words, says=says, code=ExitCode.INPUT_REFUSED)


def test_other_distances_of_taps_are_told(tmp_path, deconv, rng, taps):
    stack = imagej(tmp_path / "s.tif", rng.random(SIZE).astype("float32"))
    same, other = (imagej(tmp_path / f"{n}.tif", taps, spacing=(n, 0.2, 0.1)) for n in (0.5, 0.3))
    says = "the taps of the kernel lie 0.3 × 0.2 × 0.1 µm apart, but the samples of the image 0.5 × 0.2 × 0.1 µm"
    assert says in deconv("forward", stack, "--kernel", other, "-o", tmp_path / "a.tif").stderr
    assert "µm apart" not in deconv("forward", stack, "--kernel", same, "-o", tmp_path / "b.tif").stderr


def test_the_error_of_a_stack_is_predicted_and_the_page_shows_it_in_cuts(tmp_path, deconv, rng):
    truth = imagej(tmp_path / "truth.tif", np.float32(100) * (rng.random((8, 16, 18)) > 0.9).astype("float32"))
    data, words = tmp_path / "data.tif", ("--kernel", "gaussian3d:0.5@0.6", "--force")
    deconv("forward", truth, *words, "--boundary", "circular", "--noise", "gaussian:0.5", "-o", data)
    made = [tmp_path / name for name in ("estimate.tif", "error.tif", "trust.tif", "page.html")]
    options = ("--truth", truth, "--error-map", made[1], "--trust-mask", made[2], "--report", made[3])
    report = deconv("invert", data, *words, *options, "-o", made[0], "--json").report
    predicted = report["predicted_error"]
    assert 0.25 < predicted["root_mean_square"] / predicted["actual_root_mean_square"] < 4
    for path in made[:3]:
        read = read_image(path)
        assert (read.axes, read.shape) == ("ZYX", (8, 16, 18))
        assert read.spanned_by(3).spacing == pytest.approx((0.5, 0.2, 0.1))
    assert set(np.unique(tifffile.imread(made[2]))) <= {0, 255}
    page = made[3].read_text(encoding="utf-8")
    assert page.count('<svg class="cuts"') == 6


zarr = pytest.importorskip("zarr")
ZARR_SAMPLES = Path(__file__).parents[1] / "fixtures" / "ome_zarr"
BLUR = ("--kernel", "gaussian:0.6", "--boundary", "reflect")


@pytest.fixture(params=["v05", pytest.param("v04", marks=pytest.mark.exhaustive)])
def sample(request, tmp_path):
    """A copy of what another program wrote."""
    path = tmp_path / "in" / "pollen.ome.zarr"
    shutil.copytree(ZARR_SAMPLES / f"{request.param}.ome.zarr", path)
    return path


def test_an_image_is_blurred_and_restored_as_an_image(deconv, sample, tmp_path):
    blurred, restored = tmp_path / "blurred.ome.zarr", tmp_path / "restored.ome.zarr"
    deconv("forward", sample, *BLUR, "-o", blurred)
    done = deconv("invert", blurred, "--kernel", "gaussian:0.6", "--lambda", "1e-8", "-o", restored)
    assert "recorded in the file by deconv forward" in done.stderr
    assert done.stdout == f"{restored}\n"
    np.testing.assert_allclose(read_image(restored).values, read_image(sample).values, atol=1)
    assert read_image(restored).metadata.channel_names == ("DAPI", "GFP")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blurred.ome.zarr", "in", "restored.ome.zarr"]


def test_in_a_tree_it_is_one_file_among_others(deconv, sample, tmp_path):
    folder = tmp_path / "in"
    np.save(folder / "a.npy", np.ones((8, 9), "float32"))
    np.save(sample / "of-another-program.npy", np.ones((8, 9), "float32"))
    (folder / "loop").symlink_to(folder)
    assert sorted(file.place.as_posix() for file in expand(folder)) == ["a.npy", "pollen.ome.zarr"]
    assert [file.path for file in expand(folder / "*.zarr")] == [sample]
    deconv("forward", folder, *BLUR, "-o", tmp_path / "out", "-q")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npy", "a.npy.json", "pollen.ome.zarr"]
    assert read_image(tmp_path / "out" / "pollen.ome.zarr").shape == (2, 3, 20, 26)


def test_an_address_is_one_sentence(deconv, sample):
    for words in (("-o", "s3://bucket/out/"), ("-o", "out", "--manifest", "s3://bucket/m.jsonl")):
        refused = deconv("forward", sample, sample / "..", *BLUR, *words, expect=ExitCode.USAGE)
        assert len(refused.errors) == 1
        assert "choose a path on this machine" in refused.errors[0]
