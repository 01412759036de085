"""Reading the README and the pages of the site: their blocks, and their commands."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SITE = sorted(page for page in (ROOT / "docs").rglob("*.md") if "gallery" not in page.parts)


def blocks(language: str, page: Path) -> list[str]:
    """All blocks of a language, as they stand on the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines that a reader types, without the prompt."""
    lines = [line for block in blocks("console", page) for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def open_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds the samples."""
    shutil.copytree(ROOT / "sample_images", folder / "sample_images")
    monkeypatch.chdir(folder)


def run(line: str) -> str:
    """Run a command that has to succeed, and return what it printed on stdout."""
    program, *arguments = shlex.split(line)
    assert program == "deconv"
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == ExitCode.SUCCESS, f"{line}\n{result.stderr}"
    return result.stdout
