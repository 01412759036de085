"""The README keeps its word: every `deconv` line runs, in order, in a folder that holds the samples."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.parts import BOUNDARIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def run_lines(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *first: str) -> None:
    """Run the commands of a page, in order, in a folder that holds the samples."""
    shutil.copytree(ROOT / "sample_images", folder / "sample_images")
    monkeypatch.chdir(folder)
    lines = [line[2:] for block in blocks("console", page) for line in block.splitlines() if line.startswith("$ ")]
    assert lines
    for line in (*first, *lines):
        program, *arguments = shlex.split(line)
        assert program == "deconv"
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == ExitCode.SUCCESS, f"{line}\n{result.stderr}"
        assert result.stdout.strip()


def first_command() -> str:
    first = blocks("sh")[0].splitlines()[0]
    return first[first.index(".venv/bin/deconv") :].removeprefix(".venv/bin/")


def test_first_screen_is_two_commands_that_ci_runs():
    install, test = blocks("sh")[0].splitlines()
    assert "pip install ." in install
    assert test.endswith("python -m pytest")
    runner = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'bash -c "${readme[0]}"' in runner
    assert 'bash -c "${readme[1]}"' in runner


def test_the_picture_at_the_top_is_what_the_first_command_writes(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "sample_images", tmp_path / "sample_images")
    monkeypatch.chdir(tmp_path)
    before, after = re.findall(r"!\[.*?\]\((.*?)\)", README.partition("```")[0])
    arguments = shlex.split(first_command())[1:]
    assert arguments[1] == before
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == ExitCode.SUCCESS
    shown, written = (np.asarray(Image.open(path), dtype=float) for path in (ROOT / after, arguments[-1]))
    # Where this fails because the command does better now, copy what it writes there.
    assert np.abs(shown - written).mean() < 0.5


def test_every_deconv_line_runs(tmp_path, monkeypatch):
    run_lines(README, tmp_path, monkeypatch, first_command())


def test_python_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"x": torch.randn(3, 32, 32), "kernel": torch.randn(4, 3, 3, 3)}
    (code,) = blocks("python")
    exec(code, names)
    assert names["x_hat"].shape == (3, 32, 32)
    assert names["result"].solution.status.is_success
    assert torch.equal(names["P"](names["y"]), names["x_hat"])


@pytest.mark.parametrize("word", list(BOUNDARIES))
def test_every_boundary_is_in_the_table(word):
    assert f"| `{word}` |" in README


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_in_the_table(code):
    assert f"| {int(code)} |" in README


PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_named_and_leads_somewhere(page):
    assert f"](docs/{page.name})" in README
    for path in (page, ROOT / "README.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


HAVE_COMMANDS = [page for page in PAGES if "```console" in page.read_text("utf-8")]
OF_SAMPLES = [page for page in HAVE_COMMANDS if not (ROOT / "tests" / f"test_{page.stem}_guide.py").exists()]
"""Pages whose commands need nothing but the samples; the others have tests that make what theirs need."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", OF_SAMPLES, ids=lambda page: page.stem)
def test_every_deconv_line_of_a_page_runs(page, tmp_path, monkeypatch):
    run_lines(page.read_text(encoding="utf-8"), tmp_path, monkeypatch)


def test_examples_of_the_help_run(tmp_path, monkeypatch):
    from deconv_cli.commands import check_grad, factor, fisher, forward, inspect, invert

    shutil.copytree(ROOT / "sample_images", tmp_path / "sample_images")
    monkeypatch.chdir(tmp_path)
    for command in (forward, invert, factor, inspect, check_grad, fisher):
        words = shlex.split(command.EXAMPLE.removeprefix("Example: "))
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == ExitCode.SUCCESS, result.stderr
        assert command.EXAMPLE.removeprefix("Example: ") in " ".join(
            CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "300"}).stdout.split()
        )
