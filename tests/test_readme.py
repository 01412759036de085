"""The README keeps its word: its commands run, the first one makes its picture, and its figures were measured."""

import re
import shlex

import numpy as np
import pytest
import tifffile
from bead_scenes import scene
from pages import README, ROOT, blocks, commands, open_samples, run
from PIL import Image
from typer.testing import CliRunner

from deconv_cli.commands import (
    check_grad,
    fisher,
    forward,
    inspect,
    invert,
    kernel_commands,
    kernel_fit,
    kernel_make,
    microscope_kernel,
)
from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode

TEXT = README.read_text(encoding="utf-8")


def first_command() -> str:
    first = blocks("sh", README)[0].splitlines()[0]
    return first[first.index(".venv/bin/deconv") :].removeprefix(".venv/bin/")


def test_first_screen_is_two_commands_that_ci_runs():
    install, test = blocks("sh", README)[0].splitlines()
    assert "pip install ." in install
    assert test.endswith("python -m pytest")
    runner = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'bash -c "${readme[0]}"' in runner
    assert 'bash -c "${readme[1]}"' in runner


def test_the_picture_at_the_top_is_what_the_first_command_writes(tmp_path, monkeypatch):
    open_samples(tmp_path, monkeypatch)
    before, after = re.findall(r"!\[.*?\]\((.*?)\)", TEXT.partition("```")[0])
    arguments = shlex.split(first_command())[1:]
    assert arguments[1] == before
    run(first_command())
    shown, written = (np.asarray(Image.open(path), dtype=float) for path in (ROOT / after, arguments[-1]))
    # Where this fails because the command does better now, copy what it writes there.
    assert np.abs(shown - written).mean() < 0.5


def test_every_deconv_line_runs(tmp_path, monkeypatch):
    open_samples(tmp_path, monkeypatch)
    lines = commands(README)
    assert len(lines) == 5
    assert all(run(line).strip() for line in lines)


def test_python_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    (code,) = blocks("python", README)
    exec(code, names)
    assert names["result"].image.shape == (3, 64, 64)
    assert names["result"].solution.status.is_success


def test_figures_of_the_comparison_were_measured():
    results = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| what was measured.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    figures = re.findall(r"\d[\d.]*(?:e-\d+)?(?: dB| s\b| of \d+)|\d\.\de-\d\d", re.sub(r"\]\(.*?\)", "]", table))
    assert len(figures) >= 18
    assert [figure for figure in figures if figure not in results] == []
    for anchor in re.findall(r"results\.md#([^)]*)\)", table):
        headings = [line.lower() for line in results.splitlines() if line.startswith("## ")]
        assert anchor in [re.sub(r"[^\wλ -]", "", line[3:]).replace(" ", "-") for line in headings], anchor


EXAMPLES = [
    *(forward.EXAMPLE, invert.EXAMPLE, inspect.EXAMPLE, check_grad.EXAMPLE, fisher.EXAMPLE, kernel_fit.EXAMPLE),
    *(kernel_make.EXTRACT_EXAMPLE, kernel_make.MAKE_EXAMPLE, kernel_make.BEADS_EXAMPLE, microscope_kernel.EXAMPLE),
    kernel_commands.ALIGN_EXAMPLE,
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_help_run(tmp_path, monkeypatch, example):
    open_samples(tmp_path, monkeypatch)
    tifffile.imwrite("beads.tif", scene((120, 120), (1.6, 1.6), 40, counts=1500).numpy().astype(np.uint16))
    line = example.removeprefix("Example: ")
    words = shlex.split(line)[1:]
    run = CliRunner().invoke(app, words, catch_exceptions=False)
    assert run.exit_code == ExitCode.SUCCESS, run.stderr
    command = words[: 1 + (words[0] == "kernel")]
    assert line in " ".join(CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "300"}).stdout.split())
