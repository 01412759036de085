"""`deconv kernel make`, and layers named behind a colon."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from bead_scenes import scene
from torch import nn

import deconv_cli
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.models.kernel_files import read_kernel


@pytest.mark.parametrize("words", ["disk:2.2", "gaussian:1*motion:5@30", "gaussian3d:1@1.5"])
def test_a_formula_is_written(deconv, tmp_path, words):
    done = deconv("kernel", "make", words, "-o", tmp_path / "k.npy", "--json")
    assert np.array_equal(np.load(tmp_path / "k.npy"), make_kernel(words).float().numpy())
    assert done.report["sum"] == pytest.approx(1.0)
    record = json.loads((tmp_path / "k.npy.json").read_text())
    assert (record["command"], record["kernel"]) == ("kernel make", words)
    assert record["output"]["samples_sha256"]


def test_refusals(refuses, tmp_path):
    refuses("kernel", "make", "gausian:3", code=ExitCode.USAGE, says="perhaps you mean gaussian")
    (tmp_path / "k.npy.json").write_text("mine")
    refuses("kernel", "make", "disk:2", "-o", tmp_path / "k.npy", code=ExitCode.USAGE, says="exists already")
    refuses("kernel", "make", "disk:2", "-o", tmp_path / "k.png", code=ExitCode.USAGE, says="a kernel is written as")


def test_a_tiff_of_a_kernel_is_read_as_the_same_kernel(deconv, refuses, tmp_path):
    path = tmp_path / "k.tif"
    deconv("kernel", "make", "motion:4@30", "-o", path, "-q")
    read = read_kernel(path)
    torch.testing.assert_close(read.kernel, make_kernel("motion:4@30").float())
    words = ["kernel", "make", "box:3", "--signal", "-o", tmp_path / "s.tif"]
    refuses(*words, code=ExitCode.USAGE, says="a kernel that is not a picture is written as .safetensors")


def test_a_kernel_with_tails_says_so_and_takes_a_size(deconv, tmp_path):
    done = deconv("kernel", "make", "airy:1", "-o", tmp_path / "k.npy")
    assert "a larger --size holds more of the tails" in done.stderr
    error = json.loads((tmp_path / "k.npy.json").read_text())["transform_error"]
    assert f"the 33×33 taps cut the tails off, so the transform is wrong by {error:.2g}" in done.stderr
    done = deconv("kernel", "make", "airy:1", "--size", "201", "-o", tmp_path / "wide.npy", "--json")
    assert np.load(tmp_path / "wide.npy").shape == (201, 201)
    assert done.report["transform_error"] < 1e-3
    assert "larger --size" not in done.stderr


def test_the_kernel_of_a_signal(deconv, tmp_path):
    deconv("kernel", "make", "box:3", "--signal", "-o", tmp_path / "k.npy", "-q")
    taps = make_kernel("box:3", dimensions=1)
    assert np.array_equal(np.load(tmp_path / "k.npy"), taps.float().numpy())


def test_a_formula_beside_a_kernel_of_a_signal_is_one_of_a_signal(deconv, save, tmp_path):
    signals, kernel = save("y", torch.rand(2, 64)), save("k", torch.ones(3) / 3)
    words = ["--kernel", "gaussian:1.5", "--kernel", kernel, "--axes", "CX"]
    assert deconv("forward", signals, *words, "-o", tmp_path / "x.npy", "--json").report["output"]["shape"] == [2, 64]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_signals_stay_signals(deconv, save, tmp_path, suffix):
    """The axes that `forward` records are read again, and an array of one axis is a signal without a record."""
    blurred, back = tmp_path / f"y{suffix}", tmp_path / f"z{suffix}"
    lines, line = save("x", np.random.default_rng(0).random((2, 40))), save("l", np.random.default_rng(1).random(40))
    for source, words in ((lines, ["--dimensions", "1"]), (line, [])):
        deconv("forward", source, "-k", "gaussian:1", "-o", blurred, "-q", "--force", *words)
        done = deconv("invert", blurred, "-k", "gaussian:1", "-o", back, "--json", "--force").report
        assert done["dimensions"] == 1
        assert done["kernel"]["shape"] == [len(make_kernel("gaussian:1", dimensions=1))]
        assert done["inputs"][0]["axes"] == done["output"]["axes"] == ("CX" if words else "X")
        assert deconv("inspect", back, "--json").report["files"][0]["made_by"]


CODE = """
from torch import nn

def make(stride=1):
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=stride), nn.Conv2d(4, 2, 3))
"""


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)).state_dict(), tmp_path / "model.pt")
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "model.pt"


def test_layers_are_listed_where_no_name_is_given(deconv, model):
    listed = deconv("kernel", "extract", model)
    assert "4×1×3×3, with a bias" in listed.stdout
    assert listed.stderr == ""
    report = deconv("kernel", "extract", model, "--json").report
    assert [layer["name"] for layer in report["layers"]] == ["0", "1"]
    code = f"{model.parent / 'net.py'}:make"
    with_code = deconv("kernel", "extract", model, "--model", code, "--init", '{"stride": 2}')
    assert "Conv2d, 4×1×3×3, with a bias, stride 2" in with_code.stdout


def test_a_layer_is_a_kernel(deconv, model, tmp_path, save, values):
    target = tmp_path / "layer.safetensors"
    done = deconv("kernel", "extract", model, "--layer", "0", "-o", target, "--json")
    assert done.report["layer"]["shape"] == [4, 1, 3, 3]
    assert "geometry" not in done.stderr
    assert "name the class of the model here with --model" in done.stderr
    image = save("x", np.random.default_rng(0).random((1, 8, 8)).astype(np.float32))
    deconv("forward", image, "-k", target, "--padding", "valid", "-o", tmp_path / "y.npy")
    network = torch.load(model, weights_only=True)
    wanted = nn.functional.conv2d(torch.from_numpy(np.load(image)), network["0.weight"], network["0.bias"])
    assert float((values(tmp_path / "y.npy")[0] - wanted).abs().max()) < 1e-6


def test_refusals_extract(refuses, model, tmp_path):
    words = ["kernel", "extract", model, "--layer", "0", "-o", tmp_path / "k.npy"]
    refuses(*words, code=ExitCode.USAGE, says="should end in .safetensors")
    refuses(*words[:-1], model, "--force", code=ExitCode.USAGE, says="is the input itself")
    refuses("kernel", "extract", model, "-o", tmp_path / "k.safetensors", code=ExitCode.USAGE,
            says="choose among 0, 1 with --layer NAME")  # fmt: skip
    refuses("kernel", "extract", model, "--init", "{}", code=ExitCode.USAGE, says="--init gives the arguments")
    refuses("kernel", "extract", tmp_path / "net.py", code=ExitCode.INPUT_REFUSED, says="not a supported model file")


@pytest.mark.parametrize("n_axes", [1, 3])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_layer_of_signals_or_stacks_goes_forward_and_back_with_its_bias(deconv, tmp_path, save, n_axes, is_whole):
    torch.manual_seed(0)
    model = nn.Sequential((nn.Conv1d if n_axes == 1 else nn.Conv3d)(4, 4, 3, padding=1))
    torch.save(model if is_whole else model.state_dict(), tmp_path / "model.pt")
    x = torch.rand(1, 4, *(6, 7, 8)[:n_axes])
    options = ["-k", tmp_path / "layer.safetensors", *([] if is_whole else ["--padding", "same"])]
    deconv("kernel", "extract", tmp_path / "model.pt", "--layer", "0", "-o", tmp_path / "layer.safetensors")
    deconv("forward", save("x", x.numpy()), *options, "-o", tmp_path / "y.npy")
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "y.npy")), model(x), atol=1e-6)
    deconv("invert", tmp_path / "y.npy", *options, "--lambda", "1e-12", "-o", tmp_path / "back.npy")
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "back.npy")), x, atol=1e-3)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A 16-bit picture of beads with a pixel of 0.1 µm."""
    path = tmp_path_factory.mktemp("beads") / "beads.tif"
    samples = scene((160, 170), (1.6, 2.1), 40, counts=1500).numpy().astype(np.uint16)
    tifffile.imwrite(path, samples, imagej=True, resolution=(10.0, 10.0), metadata={"axes": "YX", "unit": "um"})
    return path


def test_a_picture_of_beads(deconv, picture, tmp_path):
    target = tmp_path / "psf.tif"
    done = deconv("kernel", "from-beads", picture, "-o", target, "--json")
    report = done.report
    assert report["beads"]["used"] == 16
    assert report["spacing"] == pytest.approx([0.1, 0.1])
    assert "µm" in done.stderr
    assert "of a point's light rises above the noise" in done.stderr
    library = deconv_cli.psf_from_beads(read_image(picture).values[0, 0], white=65535.0, spacing=(0.1, 0.1))
    written = tifffile.imread(target)
    assert np.abs(written - library.psf.float().numpy()).max() < 1e-7
    assert report["fwhm_samples"] == pytest.approx(list(library.widths))
    # A camera shows the point-spread function; the taps of a correlation are the same turned.
    deconv("kernel", "from-beads", picture, "-o", tmp_path / "psf.npy", "-q")
    assert np.array_equal(np.load(tmp_path / "psf.npy"), written[::-1, ::-1])
    for kernel in ("psf.tif", "psf.npy"):
        deconv("forward", picture, "-k", tmp_path / kernel, "-o", tmp_path / f"{kernel}.out.npy", "-q")
    first, second = (np.load(tmp_path / f"{kernel}.out.npy") for kernel in ("psf.tif", "psf.npy"))
    assert np.abs(first - second).max() < 1e-3 * np.abs(second).max()


def test_a_width_that_the_kernel_cannot_show_is_null(deconv, save):
    path = save("stars", scene((90, 90), (2.0, 2.0), 45, counts=1500).numpy())
    done = deconv("kernel", "from-beads", path, "--size", "3,3", "--json")
    assert done.report["fwhm_samples"] == [None, None]
    assert "wider than the kernel" in done.stderr


def test_other_light_around_the_points_is_noted(deconv, save):
    stars = scene((200, 200), (2.0, 2.0), 60, counts=3000)
    fog = 0.4 * scene((200, 200), (9.0, 9.0), 60, counts=3000).roll((6, 9), dims=(-2, -1))
    path = save("fog", (stars + fog).numpy())
    assert "--clean-kernel" in deconv("kernel", "from-beads", path).stderr
    assert "--clean-kernel" not in deconv("kernel", "from-beads", path, "--size", "9,9").stderr


def test_channels_are_chosen(deconv, refuses, save, tmp_path):
    both = torch.stack([scene((90, 90), (1.5, 1.5), 45, counts=1500), scene((90, 90), (2.0, 2.0), 45, counts=1500)])
    path = save("both", both.numpy())
    refuses("kernel", "from-beads", path, code=ExitCode.USAGE, says="holds 2 channels; choose one with --channel N")
    refuses("kernel", "from-beads", path, "--channel", 2, code=ExitCode.USAGE, says="--channel must be from 0 to 1")
    widths = [deconv("kernel", "from-beads", path, "--channel", c, "--json").report["fwhm_samples"][0] for c in (0, 1)]
    assert widths[0] < 0.9 * widths[1]


def test_refusals_beads(refuses, picture, tmp_path, save):
    refuses("kernel", "from-beads", picture, "--size", "9", code=ExitCode.USAGE, says="--size must hold 2 numbers")
    refuses("kernel", "from-beads", picture, "-o", tmp_path / "psf.png", code=ExitCode.USAGE, says="is written as .tif")
    empty = save("empty", np.random.default_rng(0).normal(size=(60, 60)))
    refuses("kernel", "from-beads", empty, code=ExitCode.UNTRUSTWORTHY, says="no bead can be measured")


@pytest.fixture
def field(tmp_path):
    """Gaussian blur that grows to the right."""
    distance = (torch.arange(7) - 3).float().square()
    taps = torch.stack([torch.exp(-(distance[:, None] + distance) / (2 * width**2)) for width in (0.6, 0.9, 1.2)])
    taps = taps / taps.sum(dim=(1, 2), keepdim=True)
    path = tmp_path / "field.safetensors"
    deconv_cli.save_kernel_field(deconv_cli.KernelField(taps[None], (0.5,), (0.2, 0.5, 0.8)), path)
    return path


def test_a_picture_is_blurred_and_restored(deconv, photograph, field, tmp_path, values):
    blurred, restored = tmp_path / "blurred.tif", tmp_path / "restored.tif"
    made = deconv("forward", photograph, "--kernel", field, "-o", blurred, "--boundary", "reflect", "--json")
    assert made.report["kernel"]["shape"] == [1, 3, 7, 7]
    assert made.report["kernel"]["field"]["columns"] == pytest.approx([0.2, 0.5, 0.8])
    assert made.report["kernel"]["dc_gain"][0] == pytest.approx([1, 1, 1], abs=1e-5)
    words = ["invert", blurred, "--kernel", field, "-o", restored, "--lambda", "1e-4"]
    run = deconv(*words)
    assert "varies over 1×3 places of the frame, sums 1 to 1" in run.stderr
    x, y = values(photograph), values(blurred)
    assert float((values(restored) - x).norm()) < 0.6 * float((y - x).norm())
    report = deconv(*words, "--json", "--force").report
    assert report["method"] == "varying"
    assert report["well_posedness"] is None
    assert "--method=varying" in report["rerun"]


@pytest.mark.parametrize("words", [[], ["--as", "kernel"]])
def test_inspect_describes_it_in_a_sentence(deconv, field, words):
    run = deconv("inspect", field, *words)
    assert "σmax" not in run.stderr  # of its tensors one by one
    assert (
        "a kernel that varies over the frame: 1×3 kernels of 7×7 taps, at 0.5 of its height and 0.2, 0.5, 0.8"
        in run.stderr
    )


@pytest.mark.parametrize("keyword", ["SATURATE", "OTHER"])
def test_stars_that_the_file_clips_below_its_type_are_left_out(deconv, tmp_path, keyword):
    fits = pytest.importorskip("astropy.io.fits")
    samples = scene((160, 170), (1.8, 1.8), 40, counts=1500, background=80)
    level = round(0.45 * float(samples.max()))
    path = tmp_path / "stars.fits"
    fits.PrimaryHDU(samples.clamp_max(level).numpy().astype("uint16"), fits.Header({keyword: level})).writeto(path)
    found = deconv("kernel", "from-beads", path, "--json")
    assert found.report["beads"]["saturated_from"] == level
    assert found.report["beads"]["saturated"] > 2
    assert f"samples of {level} or more" in found.stderr
    rest = ("--kernel", "gaussian:1.8", "--lambda", 0.1, "-o", tmp_path / "x.fits")
    says = "treated as lower bounds" if keyword == "SATURATE" else f"share the largest value, {level}"
    assert says in deconv("invert", path, *rest, expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)).stderr


def test_the_gain_of_a_header_is_named(deconv, tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    path = tmp_path / "stars.fits"
    samples = scene((80, 80), (1.8, 1.8), 40, counts=1500).numpy().astype("float32")
    fits.PrimaryHDU(samples, fits.Header({"EGAIN": 2.5})).writeto(path)
    rest = ("--kernel", "gaussian:1.8", "--method", "richardson-lucy", "-o", tmp_path / "x.fits", "--force")
    either = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
    says = "the header says 2.5 electrons for each unit, which is --gain 0.4"
    assert says in deconv("invert", path, *rest, "--gain", 2.5, expect=either).stderr
    assert says not in deconv("invert", path, *rest, "--gain", 0.4, expect=either).stderr


@pytest.mark.parametrize(
    ("header", "gain", "says"),
    [
        ("GAIN", 0.5, "it is used, since the data show about the same, 0.4"),
        ("EGAIN", None, "it is not used, since the data show 0.4"),
    ],
)
def test_the_gain_of_a_header_that_the_counts_show_is_used(deconv, tmp_path, header, gain, says):
    fits = pytest.importorskip("astropy.io.fits")
    path = tmp_path / "counts.fits"
    draw = torch.Generator().manual_seed(0)
    scene = torch.linspace(20, 400, 96).expand(96, 96)
    electrons = 2.0 if gain else 120.0  # a step of a camera's amplifier
    counts = 0.5 * torch.poisson(scene, generator=draw).numpy()
    fits.PrimaryHDU(counts, fits.Header({header: electrons})).writeto(path)
    rest = ("--kernel", "gaussian:1", "--method", "richardson-lucy", "--gain", "auto", "-o", tmp_path / "x.fits")
    done = deconv("invert", path, *rest, "--json", expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))
    assert says in " ".join(done.stderr.split())
    assert (done.report["gain"] == gain) == (gain is not None)
