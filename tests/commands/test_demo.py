"""`deconv demo` blurs a picture, finds the blur, undoes it, and says each command that it runs."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from deconv_cli.commands import demo
from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode


def run(*words):
    return CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "deconv-demo"


@pytest.mark.exhaustive
def test_the_demonstration_finds_its_blur_and_undoes_it(folder):
    done = run(*shlex.split(demo.EXAMPLE)[2:])
    assert done.exit_code == ExitCode.SUCCESS, done.stderr
    names = ("sharp", "blurred", "restored")
    sharp, blurred, restored = (np.asarray(Image.open(folder / f"{name}.png"), float) for name in names)
    assert np.square(restored - sharp).mean() < 0.4 * np.square(blurred - sharp).mean()
    assert "<html" in (folder / "restored.html").read_text(encoding="utf-8")
    assert float(re.search(r"disk:([\d.]+)", done.stdout)[1]) == pytest.approx(3.5, abs=0.1)


def test_the_commands_of_the_demonstration_can_be_repeated(folder, monkeypatch):
    monkeypatch.setattr(demo, "STEPS", demo.STEPS[:2])
    done = run("demo")
    assert done.exit_code == ExitCode.SUCCESS, done.stderr
    assert done.stdout.splitlines()[-1] == str(demo.Path("deconv-demo") / "restored.html")
    lines = re.findall(r"^\$ deconv (.*)$", done.stderr, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["forward", "kernel"]
    before = (folder / "blurred.png").read_bytes()
    assert run(*shlex.split(lines[0]), "--force").exit_code == ExitCode.SUCCESS
    assert (folder / "blurred.png").read_bytes() == before
    again = run("demo")
    assert again.exit_code == ExitCode.USAGE
    assert "exists; choose another folder with --output, or overwrite with --force" in again.stderr
    assert run("demo", "--force", "--quiet").exit_code == ExitCode.SUCCESS


def test_a_folder_that_cannot_be_made_and_a_step_that_fails_end_the_demonstration(folder, monkeypatch):
    (folder.parent / "taken").touch()
    done = run("demo", "-o", str(folder.parent / "taken" / "inside"))
    assert done.exit_code == ExitCode.FAILURE
    assert "cannot be made" in done.stderr
    monkeypatch.setattr(demo, "STEPS", (("Fail:", ("inspect", "missing.png")), *demo.STEPS))
    failed = run("demo", "-q")
    assert failed.exit_code == ExitCode.USAGE
    assert failed.stdout == ""
