"""What a killed run left is known by its name: the next run of the same file removes it, and nobody reads it."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import atomic, read_image
from deconv_cli.io.atomic import PARTIAL, hidden_name, left_of, partial_path, write_atomically
from deconv_cli.io.regions import open_regions


def left_by_a_killed_process(final, ending=PARTIAL):
    """Name what a process left that is no more."""
    name = hidden_name(final, ending).name
    return final.with_name(name.replace(f"-{os.getpid()}-", "-999999999-"))


def write(path):
    write_atomically(path, lambda temporary: temporary.write_bytes(b"new") and None, lambda _: None)


@pytest.mark.parametrize("name", ["out.tif", "a[1] b.ome.tif", "no_suffix", "ü" * 120 + ".npy"])
def test_the_next_run_of_a_file_removes_what_a_killed_one_left_of_it(tmp_path, name):
    of_others = [left_by_a_killed_process(tmp_path / other) for other in (f"x{name}", f"{name}.json")]
    for left in (*(left_by_a_killed_process(tmp_path / name) for _ in range(2)), *of_others):
        left.write_text("half")
    write(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {name, *(other.name for other in of_others)}
    assert (tmp_path / name).read_bytes() == b"new"


def test_so_it_does_with_a_folder_that_was_put_aside(tmp_path):
    def make(folder):
        folder.mkdir()
        (folder / "content").write_text("new")

    final = tmp_path / "out.zarr"
    for left in (left_by_a_killed_process(final), left_by_a_killed_process(final, "replaced"), final):
        left.mkdir()
        (left / "content").write_text("old")
    write_atomically(final, make, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
    assert (final / "content").read_text() == "new"


def test_what_another_process_is_writing_stays(tmp_path):
    final = tmp_path / "out.tif"
    of_parent = hidden_name(final, PARTIAL).name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    new, old = (hidden_name(final, PARTIAL).name.replace(atomic._host(), host) for host in ("0" * 8, "1" * 8))
    for name in (of_parent, new, old):
        (tmp_path / name).write_text("half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / old, (two_days_ago, two_days_ago))
    write(final)
    assert {path.name for path in tmp_path.iterdir()} == {"out.tif", of_parent, new}


def test_what_is_being_written_now_is_hidden_and_not_left(tmp_path):
    def make(temporary):
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".tif"
        assert left_of(tmp_path / "out.tif", PARTIAL) == []
        temporary.write_text("new")

    write_atomically(tmp_path / "out.tif", make, lambda _: None)


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
def test_a_killed_writer_leaves_a_whole_file_or_none_and_the_next_one_removes_the_rest(tmp_path, planned, suffix, seed):
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
    source = read_image(tmp_path / "in.png")
    planned(target, source, force=True).prepare(torch.ones(source.values.shape)).write({})
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
