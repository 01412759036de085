"""The commands and the code of docs/stacks.md run, in a folder that holds the samples, and do what the page says."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8")


@pytest.mark.exhaustive  # the README runs the two that take time
def test_every_command_runs_and_a_real_stack_keeps_its_metadata(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "sample_images", tmp_path / "sample_images")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        arguments = shlex.split(line.removeprefix("$ deconv "))
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == ExitCode.SUCCESS, f"{line}\n{done.stderr}"
    source = read_image(Path("sample_images/pollen.ome.tif")).spanned_by(3)
    restored = read_image(Path("restored.ome.tif")).spanned_by(3)
    assert (restored.axes, restored.shape, restored.spacing) == (source.axes, source.shape, source.spacing)
    truth = source.values.double()
    blurred = read_image(Path("blurred.ome.tif")).spanned_by(3)
    assert (restored.values - truth).norm() < 0.75 * (blurred.values - truth).norm()
    assert tifffile.imread("smooth.tif").shape == (24, 96, 96)


def test_the_code_runs():
    torch.manual_seed(0)
    names = {"torch": torch}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        exec(code, names)
    assert (names["restored"].image - names["stack"]).norm() < 0.5 * (names["blurred"] - names["stack"]).norm()
    np.testing.assert_array_equal(names["plane_by_plane"].shape, (1, 16, 24, 24))
    assert names["smooth"].shape == (2, 200)
    one, both = ((names[name].image - names["stack"]).norm() for name in ("one", "both"))
    assert both < 0.95 * one
