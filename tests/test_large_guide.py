"""The commands and the code of docs/large.md run, in a folder that holds the samples."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import deconv_cli
from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "large.md").read_text(encoding="utf-8")


@pytest.mark.exhaustive  # tests/commands/test_cli_blocks.py has a smaller picture
def test_every_command_and_the_code_run(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "sample_images", tmp_path / "sample_images")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line.removeprefix("$ deconv "))
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == ExitCode.SUCCESS, f"{line}\n{done.stderr}"
        assert Path(words[words.index("-o") + 1]).exists() == ("--dry-run" not in words)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {"deconv_cli": deconv_cli, "kernel": deconv_cli.make_kernel("gaussian:1")}
    exec(code, names)
    assert not names["done"].doubts
