"""What the examples share: a folder with the samples, a prompt, and pictures side by side."""

import contextlib
import shlex
import shutil
import tempfile
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from typer.testing import CliRunner

SAMPLES = Path(__file__).resolve().parents[2] / "sample_images"
WIDTH = 94
_folder = SAMPLES.parent


def open_folder():
    """Make a folder that holds the sample images; the commands run in it."""
    global _folder
    _folder = Path(tempfile.mkdtemp(prefix="deconv-"))
    shutil.copytree(SAMPLES, _folder / "sample_images")
    return _folder


def prompt(line, expect=0):
    """Run a deconv command in the folder, and print it with all that it says."""
    from deconv_cli.commands.app import app

    words = shlex.split(line)
    with contextlib.chdir(_folder):
        done = CliRunner().invoke(
            app, words[1:], prog_name=words[0], env={"COLUMNS": str(WIDTH)}, catch_exceptions=False
        )
    print(f"$ {line}")
    for row in done.output.splitlines():
        print(
            row.rstrip()
            if len(row.rstrip()) <= WIDTH
            else textwrap.fill(row.rstrip(), WIDTH, subsequent_indent=6 * " ")
        )
    assert done.exit_code == expect, f"exit code {done.exit_code}"


def read(path):
    """Read a picture file of the folder as an array of floats."""
    return np.asarray(Image.open(_folder / path), dtype=float)


def psnr(estimate, truth, white=255.0):
    """Give the peak signal-to-noise ratio in dB."""
    return 10 * np.log10(white**2 / np.mean((np.asarray(estimate, float) - np.asarray(truth, float)) ** 2))


def show(pictures, columns=2, crop=None, low=0.0, high=255.0, cmap="gray", width=8.0):
    """Show pictures side by side, each under its title; crop is (top, left, height, width)."""
    n_rows = -(-len(pictures) // columns)
    parts = {}
    for title, picture in pictures.items():
        part = np.asarray(picture, float)
        if crop is not None:
            top, left, n_down, n_across = crop
            part = part[top : top + n_down, left : left + n_across]
        parts[title] = part
    height, across = next(iter(parts.values())).shape[:2]
    side = width / columns
    size = (width, n_rows * (side * height / across + 0.35))
    figure, axes = plt.subplots(n_rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, part) in zip(axes.flat, parts.items(), strict=False):
        scaled = np.clip((part - low) / (high - low), 0, 1)
        axis.imshow(scaled, cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    return figure
