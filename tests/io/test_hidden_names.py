"""Files in the making have hidden names, and nobody reads them."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import read_image
from deconv_cli.io.atomic import partial_path, write_atomically
from deconv_cli.io.regions import open_regions


@pytest.mark.parametrize("name", ["out.tif", "a[1] b.ome.tif", "ü" * 120 + ".npy"])
def test_a_file_is_written_under_a_hidden_name_of_its_suffix(tmp_path, name):
    def make(temporary):
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == (tmp_path / name).suffix
        temporary.write_bytes(b"new")

    write_atomically(tmp_path / name, make, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("ending", ["", "-0123abcd"])
@pytest.mark.parametrize("read", [read_image, open_regions])
def test_a_result_in_the_making_is_not_read(tmp_path, ending, read):
    hidden = partial_path(tmp_path / "out.npy")
    np.save(tmp_path / "whole.npy", np.zeros((4, 4)))
    (tmp_path / "whole.npy").rename(hidden.with_name(hidden.name + ending))
    with pytest.raises(MalformedInputError, match="is a result in the making, of which parts are missing"):
        read(hidden.with_name(hidden.name + ending))


WRITES_ON = """
import sys
from pathlib import Path
import torch
from deconv_cli.io import plan_output, read_image

source, target = read_image(Path(sys.argv[1])), Path(sys.argv[2])
for number in range(250):
    options = {"output_dtype": None, "force": True, "same_size": True, "n_channels": source.values.shape[1]}
    plan_output(target, source, **options).prepare(torch.full(source.values.shape, float(number))).write({})
    print(number, flush=True)
"""


@pytest.mark.exhaustive  # processes load torch
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy", ".png", ".ome.zarr"])
def test_a_killed_writer_leaves_a_whole_file_or_none(tmp_path, suffix, seed):
    pytest.importorskip("zarr")
    Image.fromarray(np.zeros((700, 800), np.uint8)).save(tmp_path / "in.png")
    target = tmp_path / f"out{suffix}"
    command = [sys.executable, "-c", WRITES_ON, str(tmp_path / "in.png"), str(target)]
    paths = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=paths) as writer:
        writer.stdout.readline()
        time.sleep(random.Random(f"{suffix}{seed}").uniform(0, 0.3))
        writer.kill()
    if target.exists():
        assert read_image(target).values.unique().numel() == 1
