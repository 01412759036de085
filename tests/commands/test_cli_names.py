"""Names of files that are no text, or longer than the file system allows, at the prompt."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def run_strictly(tmp_path):
    """Run the command in a folder with a picture and a kernel, with a stdout that takes nothing but UTF-8."""
    Image.fromarray(np.arange(256, dtype="uint8").reshape(16, 16)).save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    np.save(tmp_path / "k.npy", np.array([[0.0, 0.1, 0], [0.1, 0.6, 0.1], [0, 0.1, 0]], "float32"))

    def run(*words):
        environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
        command = [sys.executable, "-m", "deconv_cli", *words]
        return subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, timeout=120)

    return run


def test_a_name_that_is_no_text_comes_out_as_it_went_in(run_strictly, tmp_path):
    done = run_strictly("forward", b"caf\xe9.png", "-k", "k.npy", "-o", b"o\xe9.tif", "--boundary", "zero")
    assert (done.returncode, done.stdout) == (0, b"o\xe9.tif\n"), done.stderr
    assert (tmp_path / os.fsdecode(b"o\xe9.tif")).exists()


def test_a_name_that_is_no_text_is_escaped_in_json(run_strictly):
    done = run_strictly("inspect", b"caf\xe9.png", "--json")
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout.decode("utf-8"))["files"][0]["path"]) == b"caf\xe9.png"


@pytest.mark.parametrize("long", ["source", "target", "kernel"])
def test_a_name_that_the_file_system_refuses(run_strictly, long):
    names = {"source": os.fsdecode(b"caf\xe9.png"), "target": "o.tif", "kernel": "k.npy"} | {long: "x" * 300 + ".npy"}
    done = run_strictly("invert", names["source"], "-k", names["kernel"], "-o", names["target"])
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"File name too long." in done.stderr.splitlines()[-1]
    assert b"Traceback" not in done.stderr
