"""The examples that end the help of the `deconv kernel` commands run as they stand there."""

from __future__ import annotations

import shlex
import shutil

import numpy as np
import pytest
import tifffile
from bead_scenes import scene

from deconv_cli.commands import kernel_commands, kernel_fit, kernel_make

EXAMPLES = {
    "extract": kernel_make.EXTRACT_EXAMPLE,
    "fit": kernel_fit.EXAMPLE,
    "make": kernel_make.MAKE_EXAMPLE,
    "from-beads": kernel_make.BEADS_EXAMPLE,
    "microscope": kernel_make.MICROSCOPE_EXAMPLE,
    "align": kernel_commands.ALIGN_EXAMPLE,
}


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_example_runs_and_is_in_the_help(deconv, command, samples_folder, tmp_path, monkeypatch):
    shutil.copytree(samples_folder, tmp_path / "sample_images")
    beads = scene((120, 120), (1.6, 1.6), 40, counts=1500).numpy().astype(np.uint16)
    tifffile.imwrite(tmp_path / "beads.tif", beads)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    line = EXAMPLES[command].removeprefix("Example: ")
    deconv(*shlex.split(line)[1:])
    assert line in " ".join(deconv("kernel", command, "--help").stdout.split())
