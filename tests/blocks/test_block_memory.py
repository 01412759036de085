"""The memory of a block is predicted before it is restored, and stays below the prediction."""

import subprocess
import sys

import pytest

from deconv_cli.blocks.block_problem import SHARE

# Peak of the resident memory over that of a small block, which has loaded all the code.
MEASURE = """
import sys
from pathlib import Path
import numpy as np
import torch
import deconv_cli
from deconv_cli.blocks.block_problem import block_bytes
from deconv_cli.blocks.preview_tiles import FixedChoices
from deconv_cli.blocks.invert_blocks import lay_out_problem
from deconv_cli.io.regions import open_regions
from deconv_cli.io.regions import read_corner
from deconv_cli.noise_model import NoiseModel
from deconv_cli.settings import ReconstructionSettings
torch.set_num_threads(1)
path, kernel = Path(sys.argv[1]), deconv_cli.make_kernel(sys.argv[2])
size, options, is_full = eval(sys.argv[3]), eval(sys.argv[4]), eval(sys.argv[5])
def peak():
    # Not ru_maxrss, which a child inherits from a larger parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
samples = np.random.default_rng(0).random([n + 20 for n in size], dtype=np.float32)
np.save(path, (300 * samples).clip(0, 255).astype(np.uint8) if is_full else samples)
source = open_regions(path)
corner = read_corner(source, are_axes_named=False).spanned_by(len(size))
settings = ReconstructionSettings.of(defaults="picture", dimensions=len(size), **options)
choices = FixedChoices(noise=(NoiseModel(sigma=0.1),), has_bounds=is_full)
problem = choices.settle(lay_out_problem(source, corner, kernel, settings))
def restore(size):
    start = 10 if is_full else 0  # a block inside takes more if samples are bounds, else one at the frame
    data = [(start, start + n) for n in size]
    problem.restore(problem.read([], data), data, problem.pipeline())
restore([24 for _ in size])
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = peak()
restore(size)
print(block_bytes(problem, size) / (peak() - before))
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak of a process in /proc")
@pytest.mark.parametrize(
    ("kernel", "size", "options", "is_full"),
    [
        ("gaussian:1.5", (900, 900), {"lam": 0.01}, False),
        ("gaussian:1.5", (900, 900), {"lam": 0.01, "max_iterations": 20}, True),
        ("gaussian:1.5", (900, 900), {"method": "richardson-lucy", "iterations": 3}, False),
        ("gaussian3d:1@1", (64, 100, 100), {"lam": 0.01}, False),
        ("gaussian3d:1@1", (64, 100, 100), {"lam": 0.01, "max_iterations": 20}, True),
    ],
)
def test_blocks_take_no_more_than_is_estimated(tmp_path, kernel, size, options, is_full):
    words = [sys.executable, "-c", MEASURE, tmp_path / "in.npy", kernel, str(size), str(options), str(is_full)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert SHARE <= float(done.stdout) <= 2.6  # the other part of the memory is left free
