"""A page's contents: a small restoration with everything that a page can show, and hostile names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.report.page import ReportContents
from deconv_cli.report.record import describe_environment, describe_reconstruction
from deconv_cli.solvers.settings import InversionSettings
from deconv_cli.vocabulary import Boundary, Penalty
from deconv_cli.workflows.diagnose import diagnose
from deconv_cli.workflows.invert import inverse_for_output, reconstruct

HOSTILE = "<img src=x onerror=alert(1)>.png"
NOTE = "</script><script>alert(2)</script> \"quoted\" 'too' {{ 7 * 7 }} &amp;"


class Rule(StrEnum):
    FIRST = "generalized cross-validation"
    SECOND = "discrepancy"


@dataclass(frozen=True)
class Curve:
    rule: Rule
    lams: tuple[float, ...]
    values: tuple[float, ...]
    chosen: float


@dataclass(frozen=True)
class Choice:
    lam: float
    rule: Rule
    reason: str
    warning: str | None
    curve: Curve | None
    witness: Curve | None


@dataclass(frozen=True)
class Band:
    distance: int
    predicted: float
    actual: float | None


@dataclass(frozen=True)
class Predicted:
    map: Tensor
    trusted: Tensor
    bands: tuple[Band, ...]


def choice():
    lams = tuple(10.0**power for power in range(-8, 1))
    first = Curve(Rule.FIRST, lams, tuple(1.0 + (power + 3) ** 2 for power in range(-8, 1)), 1e-3)
    second = Curve(Rule.SECOND, lams, tuple(100.0 * abs(power + 1) + 0.5 for power in range(-8, 1)), 1e-1)
    return Choice(1e-2, Rule.FIRST, "both rules were weighed", "the rules differ by a factor of 100", first, second)


def restored(n_channels=1, size=(60, 72), *, dtype=torch.float32):
    """A blurred patch with its inverse and its reconstruction."""
    generator = torch.Generator().manual_seed(n_channels)
    truth = functional.avg_pool2d(100 * torch.rand(n_channels, size[0] + 4, size[1] + 4, generator=generator), 5, 1)
    taps = torch.full((3, 3), 1 / 9)
    y = functional.conv2d(truth[:, None], taps[None, None], padding="same")[:, 0]
    y = y + 0.1 * torch.randn(y.shape, generator=generator)
    settings = InversionSettings(padding="same", boundary=Boundary.ZERO, lam=1e-2, penalty=Penalty.GRADIENT)
    inverse = inverse_for_output(y, taps, settings, dtype)
    return inverse, reconstruct(inverse, y.to(dtype)), y.to(dtype), truth.to(dtype)


def record_of(result, y, path=HOSTILE, notes=(NOTE,)):
    return {
        "schema": 1,
        "command": "invert",
        "inputs": [{"path": path, "shape": list(y.shape), "axes": "CYX", "dtype": "uint8", "sha256": "0" * 64}],
        "kernel": {"path": f"kernels/{HOSTILE}", "layer": None, "shape": [3, 3], "dc_gain": 1.0},
        "boundary": "zero",
        "boundary_reason": "asked for",
        **describe_reconstruction(result),
        "lambda_reason": "asked for",
        "output": {"path": "out.tif", "shape": list(y.shape), "dtype": "float32"},
        "notes": list(notes),
        **describe_environment(torch.device("cpu"), torch.float32, 1),
        "rerun": f"deconv invert --kernel=k.npy --lambda=0.01 -- '{HOSTILE}'",
    }


@pytest.fixture(scope="session")
def contents():
    """Make the contents of a page; keyword arguments replace parts."""

    def make(n_channels=1, size=(60, 72), **parts) -> ReportContents:
        inverse, result, y, _ = restored(n_channels, size)
        whole = {
            "record": record_of(result, y),
            "data": y,
            "estimate": result.image,
            "diagnosis": diagnose(inverse, result, y),
            "is_picture": True,
        }
        return ReportContents(**{**whole, **parts})

    return make


@pytest.fixture(scope="session")
def full_contents():
    """Make contents with every optional part."""

    def make(n_channels=1, size=(60, 72)) -> ReportContents:
        inverse, result, y, truth = restored(n_channels, size)
        error = (result.image - truth).abs() + 0.5
        trusted = torch.ones(size, dtype=torch.bool)
        trusted[:7] = False
        bands = tuple(Band(at, 3.0 - at / 10, 2.5 - at / 10) for at in range(10))
        return ReportContents(
            record=record_of(result, y),
            data=y,
            estimate=result.image,
            diagnosis=diagnose(inverse, result, y),
            is_picture=True,
            lambda_choice=choice(),
            predicted_error=Predicted(error, trusted, bands),
            truth=truth,
        )

    return make
