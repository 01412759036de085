"""Names of files and streams as no one expects them: bytes that are no text, too long, closed, full, no terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode


@pytest.fixture
def run_strictly(tmp_path):
    """Run the command in a folder with a picture and a kernel, with a stdout that takes nothing but UTF-8."""
    Image.fromarray(np.arange(256, dtype="uint8").reshape(16, 16)).save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    np.save(tmp_path / "k.npy", np.array([[0.0, 0.1, 0], [0.1, 0.6, 0.1], [0, 0.1, 0]], "float32"))

    def run(*words, stdout=subprocess.PIPE, encoding="utf-8:strict"):
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        environment["PYTHONIOENCODING"] = encoding
        command = [sys.executable, "-m", "deconv_cli", *words]
        streams = {"stdout": stdout, "stderr": subprocess.PIPE}
        return subprocess.run(command, **streams, cwd=tmp_path, env=environment, timeout=300)

    return run


def test_a_name_that_is_no_text_comes_out_as_it_went_in(run_strictly, tmp_path):
    done = run_strictly("forward", b"caf\xe9.png", "-k", "k.npy", "-o", b"o\xe9.tif", "--boundary", "zero")
    assert (done.returncode, done.stdout) == (0, b"o\xe9.tif\n"), done.stderr
    assert (tmp_path / os.fsdecode(b"o\xe9.tif")).exists()


def test_a_name_that_is_no_text_is_escaped_in_json(run_strictly):
    done = run_strictly("inspect", b"caf\xe9.png", "--json")
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout.decode("utf-8"))["files"][0]["path"]) == b"caf\xe9.png"


def test_a_reader_of_stdout_that_leaves_does_not_fail_the_run(run_strictly, tmp_path):
    theirs, ours = os.pipe()
    os.close(theirs)
    done = run_strictly("forward", b"caf\xe9.png", "-k", "k.npy", "-o", "o.tif", "--boundary", "zero", stdout=ours)
    os.close(ours)
    assert done.returncode == ExitCode.SUCCESS, done.stderr
    assert (tmp_path / "o.tif").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("words", [["inspect", b"caf\xe9.png", "--json"], ["--version"]])
def test_a_full_stdout_is_said_in_a_sentence(run_strictly, words):
    with Path("/dev/full").open("wb") as full:
        done = run_strictly(*words, stdout=full)
    assert done.returncode == ExitCode.FAILURE
    assert done.stderr == b"error: the answer cannot be written to stdout: No space left on device.\n"


def test_a_name_steers_no_terminal_breaks_no_table_in_a_pipe_and_fits_json_in_any_locale(run_strictly, tmp_path):
    folder = tmp_path / ("a long name " * 15)
    folder.mkdir()
    name = f"{folder.name}/\x1b]0;title\a\nerror: forged.png"
    Image.fromarray(np.zeros((8, 8), "uint8")).save(tmp_path / name)
    done = run_strictly("forward", name, "-k", "k.npy", "-o", "λ.tif", "--json", encoding="latin-1:strict")
    assert json.loads(done.stdout)["output"]["path"] == "λ.tif"
    lines = done.stderr.decode("latin-1").splitlines()
    assert b"\x1b" not in done.stderr
    assert not any(line.startswith("error:") for line in lines)
    assert any(f"{folder.name}/\\x1b]0;title\\x07\\nerror: forged.png" in line for line in lines)
