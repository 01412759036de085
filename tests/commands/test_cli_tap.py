"""`--tap`: custom taps at the prompt, forward and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deconv_cli
from deconv_cli.commands.exit_codes import ExitCode

TAPS_FILE = """
import torch

def saturate(pixel, weight):
    print("called")
    return torch.tanh(pixel * weight)

def flat(pixel, weight):
    return (pixel * weight).detach()

number = 3
"""


@pytest.fixture
def case(tmp_path, save):
    """An image and weights that determine it, and a file with taps."""
    random = np.random.default_rng(2)
    (tmp_path / "taps.py").write_text(TAPS_FILE)
    return save("x", 0.3 * random.random((1, 9, 8))), save("weights", random.uniform(-1, 1, (3, 1, 3, 3))), tmp_path


@pytest.mark.parametrize("tap", ["tan-sum", "taps.py:saturate"])
def test_what_forward_made_invert_undoes(deconv, case, values, distance, tap, kept_in):
    x, weights, folder = case
    tap = tap.replace("taps.py", str(folder / "taps.py"))
    there = deconv("forward", x, "-k", weights, "--tap", tap, "-o", folder / "y.safetensors", "--dtype", "float64",
                   "--output-dtype", "float64", "--boundary", "reflect", "--json")  # fmt: skip
    assert there.report["tap"] == tap
    back = deconv("invert", folder / "y.safetensors", "-k", weights, "--tap", tap, "--lambda", 0, "-o",
                  folder / "back.safetensors", "--output-dtype", "float64", "--json")  # fmt: skip
    report = back.report
    assert report["tap"] == tap
    assert report["boundary"] == "reflect"
    assert report["is_determined"]
    assert report["solver"]["certificate"] <= 1e-10
    assert "Gauss–Newton, converged to the tolerance" in back.stderr
    assert ("called" in back.stderr) == ("saturate" in tap)
    assert distance(values(folder / "back.safetensors"), values(x)) < 1e-7
    again = back.report["rerun"].split()[1:]
    assert "made this file with" not in deconv(*again).stderr
    plain = deconv("invert", folder / "y.safetensors", "-k", weights, "-o", folder / "plain.npy", expect=ExitCode.USAGE)
    assert f"with --tap {tap.rpartition('/')[2]}, which is no product" in plain.stderr
    assert not (folder / "plain.npy").exists()
    assert distance(values(folder / "back.safetensors"), values(x)) < 1e-7


def test_the_command_is_the_library(deconv, case, values):
    x, weights, folder = case
    deconv("forward", x, "-k", weights, "--tap", "tan-sum", "-o", folder / "y.npy", "--padding", "full")
    kernel, image = torch.from_numpy(np.load(weights)), torch.from_numpy(np.load(x))
    y = deconv_cli.forward_taps(image, kernel, "tan-sum", padding="full")
    assert torch.equal(values(folder / "y.npy")[0], y.float().double())
    deconv("invert", folder / "y.npy", "-k", weights, "--tap", "tan-sum", "--padding", "full", "--start", 0.1,
           "-o", folder / "back.npy")  # fmt: skip
    back = deconv_cli.invert_taps(y.float(), kernel, "tan-sum", padding="full", start=0.1)
    assert torch.equal(values(folder / "back.npy")[0], back.image.double())


def test_an_estimate_that_the_data_leave_open_is_not_trusted(deconv, case, save, tmp_path):
    y = save("y", np.random.default_rng(0).random((1, 9, 8)))
    weights = save("two", np.random.default_rng(1).standard_normal((1, 2, 3, 3)))
    done = deconv("invert", y, "-k", weights, "--tap", "tan-sum", "--lambda", 0, "--max-iterations", 50,
                  "-o", tmp_path / "open.npy", expect=ExitCode.UNTRUSTWORTHY)  # fmt: skip
    assert "left open by the data" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tap", "cosine"], "--tap must be one of product, tan-sum, or file.py:function"),
        (["--tap", "FOLDER/none.py:f"], "does not exist"),
        (["--tap", "FOLDER/taps.py:nothing"], "holds no 'nothing'"),
        (["--tap", "FOLDER/taps.py:number"], "should be a class, a function"),
        (["--tap", "FOLDER/taps.py:flat"], "has no gradient"),
        (["--tap", "product", "--prior", "tv"], "--prior has no use for custom taps"),
        (["--tap", "product", "--lambda", "auto"], "--lambda must be zero or a positive number"),
        (["--tap", "product", "--error-map", "FOLDER/e.npy"], "does not go with --report"),
        (["--start", "1"], "leave --start out"),
    ],
)
def test_refusals(refuses, case, save, words, says):
    _, weights, folder = case
    y = save("y", np.random.default_rng(0).random((3, 9, 8)))
    words = [word.replace("FOLDER", str(folder)) for word in words]
    refuses("invert", y, "-k", weights, "-o", folder / "out.npy", *words, code=ExitCode.USAGE, says=says)


def test_light_and_factors_are_refused(refuses, gray, gentle, tmp_path):
    refuses("forward", gray, "-k", gentle, "--tap", "product", "--light", "linear", "-o", tmp_path / "y.tif",
            code=ExitCode.USAGE, says="--tap acts on the samples as they are stored")  # fmt: skip
    refuses("invert", gray, "--factor", gentle, "--tap", "product", "-o", tmp_path / "y.tif",
            code=ExitCode.USAGE, says="--factor is an inverse that was built for products")  # fmt: skip


def test_a_picture(deconv, gray, gentle, tmp_path, values, distance):
    """The samples are acted on as they are stored, and nothing is assumed of what lies outside the frame."""
    options = ["-k", gentle, "--lambda", "1e-3", "--tolerance", "1e-6"]
    done = deconv("invert", gray, *options, "--tap", "product", "-o", tmp_path / "taps.tif", "--json")
    deconv("invert", gray, *options, "--light", "stored", "-o", tmp_path / "plain.tif", "--noise", "white")
    assert done.report["boundary"] == "unknown"
    assert done.report["penalty"] == "gradient"
    assert distance(values(tmp_path / "taps.tif"), values(tmp_path / "plain.tif")) < 1e-3


def test_a_stride_is_kept_in_the_file_and_undone(deconv, tmp_path, save, values):
    random = np.random.default_rng(3)
    x = save("x", 0.3 * random.random((1, 9, 8)))
    weights = save("weights", random.uniform(-1, 1, (9, 1, 3, 3)))
    words = ("--tap", "tan-sum", "--stride", "2", "--padding", "1", "--dtype", "float64", "--output-dtype", "float64")
    deconv("forward", x, "-k", weights, *words, "-o", tmp_path / "y.npy")
    there = deconv(
        "invert", tmp_path / "y.npy", "-k", weights, "--tap", "tan-sum", "--lambda", "0", "--input-size", "9,8",
        *words[-4:], "-o", tmp_path / "back.npy", "--json"
    )  # fmt: skip
    assert there.report["layer_options"] == {"stride": 2}
    assert {"--stride=2", "--input-size=9,8"} <= set(there.report["rerun"].split())
    assert float(np.abs(np.load(tmp_path / "back.npy") - np.load(x)).max()) < 1e-6


def test_groups_are_refused(refuses, case):
    x, weights, folder = case
    words = ("-k", weights, "--tap", "tan-sum", "--groups", "3", "-o", folder / "y.npy")
    refuses("forward", x, *words, code=ExitCode.USAGE, says="leave groups out")
