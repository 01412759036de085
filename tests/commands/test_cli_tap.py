"""`deconv forward --tap`: custom taps at the prompt."""

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

number = 3
"""


@pytest.fixture
def case(tmp_path, save):
    """An image, weights, and a file with taps."""
    random = np.random.default_rng(2)
    (tmp_path / "taps.py").write_text(TAPS_FILE)
    return save("x", 0.3 * random.random((1, 9, 8))), save("weights", random.uniform(-1, 1, (3, 1, 3, 3))), tmp_path


@pytest.mark.parametrize("tap", ["tan-sum", "taps.py:saturate"])
def test_forward_records_the_tap_and_invert_refuses_it(deconv, refuses, case, tap):
    x, weights, folder = case
    tap = tap.replace("taps.py", str(folder / "taps.py"))
    done = deconv("forward", x, "-k", weights, "--tap", tap, "-o", folder / "y.safetensors", "--json")
    assert done.report["tap"] == tap
    assert ("called" in done.stderr) == ("saturate" in tap)
    refuses("invert", folder / "y.safetensors", "-k", weights, "-o", folder / "x.npy", code=ExitCode.USAGE,
            says=f"with --tap {tap.rpartition('/')[2]}; apply the kernel without a tap")  # fmt: skip


def test_invert_undoes_the_products_that_were_named_so(deconv, case, values, distance):
    x, weights, folder = case
    deconv("forward", x, "-k", weights, "--tap", "product", "-o", folder / "y.npy", "--output-dtype", "float64")
    deconv("invert", folder / "y.npy", "-k", weights, "--lambda", 0, "-o", folder / "x2.npy", "--dtype", "float64")
    assert distance(values(folder / "x2.npy"), values(x)) < 1e-5


def test_the_command_is_the_library(deconv, case, values):
    x, weights, folder = case
    words = ("--padding", "full", "--stride", 2, "--dilation", 2)
    deconv("forward", x, "-k", weights, "--tap", "tan-sum", "-o", folder / "y.npy", *words)
    kernel, image = torch.from_numpy(np.load(weights)), torch.from_numpy(np.load(x))
    y = deconv_cli.forward_taps(image, kernel, "tan-sum", padding="full", stride=2, dilation=2)
    assert torch.equal(values(folder / "y.npy")[0], y.float().double())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cosine"], "tap must be one of product, tan-sum"),
        (["FOLDER/none.py:f"], "does not exist"),
        (["FOLDER/taps.py:nothing"], "holds no 'nothing'"),
        (["FOLDER/taps.py:number"], "should be a class, a function"),
        (["tan-sum", "--groups", "3"], "leave groups out"),
        (["tan-sum", "--transposed"], "leave transposed out"),
        (["product", "--light", "linear"], "--tap acts on the samples as they are stored"),
    ],
)
def test_refusals(refuses, case, words, says):
    x, weights, folder = case
    words = [word.replace("FOLDER", str(folder)) for word in words]
    refuses("forward", x, "-k", weights, "-o", folder / "out.npy", "--tap", *words, code=ExitCode.USAGE, says=says)
