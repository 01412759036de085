"""The command line run in this process, small samples, and a second implementation of convolution to judge it by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from typer.testing import CliRunner

from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image

SAMPLES = Path(__file__).parents[2] / "sample_images"

PAD_MODES = {"circular": "wrap", "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge"}


@dataclass(frozen=True)
class Run:
    """What one call of the command left behind."""

    code: ExitCode
    stdout: str
    stderr: str

    @property
    def report(self) -> dict:
        """All of stdout as one JSON document; more or less than one is an error."""
        return json.loads(self.stdout)

    @property
    def errors(self) -> list[str]:
        """The error sentences."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def deconv():
    """Run the command; a bug raises here, with its traceback."""

    def run(*args, expect=ExitCode.SUCCESS) -> Run:
        words = [str(arg) for arg in args]
        result = CliRunner().invoke(app, words, prog_name="deconv", catch_exceptions=False)
        done = Run(ExitCode(result.exit_code), result.stdout, result.stderr)
        assert done.code in (expect if isinstance(expect, tuple) else (expect,)), (
            f"{words}\n{done.code!r}\n{done.stderr}{done.stdout}"
        )
        return done

    return run


@pytest.fixture
def refuses(deconv, tmp_path):
    """Run a command that must be refused: one sentence on stderr, every file as it was, on stdout at most the JSON."""

    def run(*args, code, says) -> str:
        before = files_in(tmp_path)
        done = deconv(*args, expect=code)
        assert files_in(tmp_path) == before
        assert done.stdout == "" or ("--json" in args and done.report["failed"])
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert lines == done.errors
        assert lines[0].endswith(".")
        for part in [says] if isinstance(says, str) else says:
            assert part in lines[0]
        return lines[0]

    return run


def files_in(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder, hidden ones too, with the content of the files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.fixture
def listing():
    return files_in


@pytest.fixture(scope="session")
def samples_folder() -> Path:
    return SAMPLES


@pytest.fixture
def photograph(tmp_path) -> Path:
    """A detail of a color photograph, 40 × 48, 8 bits."""
    path = tmp_path / "photograph.png"
    with Image.open(SAMPLES / "astronaut.png") as picture:
        picture.crop((100, 60, 148, 100)).save(path)
    return path


@pytest.fixture
def microscope(tmp_path) -> Path:
    """A detail of the 16-bit sample, 44 × 40, as an ImageJ TIFF with a pixel size."""
    path = tmp_path / "microscope.tif"
    plane = tifffile.imread(SAMPLES / "retina16.tif")[100:144, 90:130]
    tifffile.imwrite(path, plane, imagej=True, resolution=(2.0, 2.0), metadata={"axes": "YX", "unit": "um"})
    return path


@pytest.fixture
def gray(tmp_path) -> Path:
    """A detail of a gray photograph, 32 × 36, 8 bits."""
    path = tmp_path / "gray.png"
    with Image.open(SAMPLES / "camera.png") as picture:
        picture.crop((90, 40, 126, 72)).save(path)
    return path


@pytest.fixture
def save(tmp_path):
    """Save an array as NAME.npy."""

    def write(name: str, array) -> Path:
        path = tmp_path / f"{name}.npy"
        np.save(path, np.asarray(array))
        return path

    return write


@pytest.fixture
def gentle(save) -> Path:
    """A well-conditioned kernel, 5 × 4 and not symmetric: a point with a faint blur around it."""
    return save("gentle", gentle_taps())


def gentle_taps() -> np.ndarray:
    taps = np.random.default_rng(3).random((5, 4))
    taps *= 0.25 / taps.sum()
    taps[2, 1] += 0.75
    return taps


@pytest.fixture
def data(tmp_path) -> Path:
    """Inputs of four numbers and their classes, of which there are three."""
    path = tmp_path / "data.safetensors"
    save_file({"input": torch.randn(20, 4), "target": torch.randint(0, 3, (20,))}, path)
    return path


class Clock:
    """Shows the time that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def blur():
    return blurred


def blurred(x: torch.Tensor, taps: torch.Tensor, padding="same", boundary: str = "zero") -> torch.Tensor:
    """Convolve `(B, C, H, W)` with `conv2d` on an image whose border is copied by NumPy's own rules.

    Taps of two axes are applied to every channel alike.
    """
    if taps.ndim == 2:
        return torch.cat([blurred(x[:, [c]], taps[None, None], padding, boundary) for c in range(x.shape[1])], 1)
    height, width = taps.shape[-2:]
    if padding == "same":
        rows, columns = ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2)
    elif padding == "full":
        rows, columns = (height - 1, height - 1), (width - 1, width - 1)
    else:
        reach = (0, 0) if padding == "valid" else (padding, padding) if isinstance(padding, int) else padding
        rows, columns = (reach[0], reach[0]), (reach[1], reach[1])
    if boundary == "zero":
        wide = functional.pad(x, (*columns, *rows))
    else:
        mode = PAD_MODES[boundary]
        wide = x[..., np.pad(np.arange(x.shape[-2]), rows, mode=mode), :]
        wide = wide[..., np.pad(np.arange(x.shape[-1]), columns, mode=mode)]
    return functional.conv2d(wide, taps)


@pytest.fixture
def values():
    """Read a file's samples as float64, shape (B, C, H, W)."""

    def read(path: Path, **options) -> torch.Tensor:
        return read_image(path, **options).values.double()

    return read


@pytest.fixture
def distance():
    """‖a − b‖ / ‖b‖."""

    def measure(a: torch.Tensor, b: torch.Tensor) -> float:
        assert a.shape == b.shape
        return float((a - b).norm() / b.norm())

    return measure
