"""A page's contents: a small restoration with everything that a page can show, and hostile names."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.lambda_rules import LambdaCurve
from deconv_cli.diagnostics.predicted_error import ErrorBand, PredictedError
from deconv_cli.report.page import ReportContents
from deconv_cli.report.record import describe_reconstruction
from deconv_cli.report.run import Environment
from deconv_cli.report.run_record import describe_environment
from deconv_cli.settings import ResolvedSettings
from deconv_cli.vocabulary import LambdaRule
from deconv_cli.workflows.diagnose import diagnose
from deconv_cli.workflows.pipeline import Pipeline

HOSTILE = "<img src=x onerror=alert(1)>.png"
NOTE = "</script><script>alert(2)</script> \"quoted\" 'too' {{ 7 * 7 }} &amp;"


def choice():
    lams = tuple(10.0**power for power in range(-8, 1))
    first = LambdaCurve(LambdaRule.GCV, lams, tuple(1.0 + (power + 3) ** 2 for power in range(-8, 1)), 1e-3)
    second = LambdaCurve(LambdaRule.ML, lams, tuple(100.0 * abs(power + 1) + 0.5 for power in range(-8, 1)), 1e-1)
    return LambdaChoice(
        lam=1e-2,
        rule=LambdaRule.GCV,
        sigma=0.1,
        is_sigma_given=False,
        curve=first,
        cross_check=second,
        n_rounds=3,
        is_converged=True,
        window=(60, 72),
    )


def band(distance):
    """The error at one distance, falling from the edge inwards."""
    return ErrorBand(
        distance=distance,
        n_pixels=100,
        predicted=3.0 - distance / 10,
        noise=1.0,
        null_space=0.5,
        outside_frame=max(0.0, 2.0 - distance / 4),
        estimate=50.0,
        periodic=20.0 - distance,
        actual=2.5 - distance / 10,
    )


def restored(n_channels=1, size=(60, 72), *, dtype=torch.float32):
    """A blurred patch with its inverse and its reconstruction."""
    generator = torch.Generator().manual_seed(n_channels)
    truth = functional.avg_pool2d(100 * torch.rand(n_channels, size[0] + 4, size[1] + 4, generator=generator), 5, 1)
    taps = torch.full((3, 3), 1 / 9)
    y = functional.conv2d(truth[:, None], taps[None, None], padding="same")[:, 0]
    y = y + 0.1 * torch.randn(y.shape, generator=generator)
    settings = ResolvedSettings(padding="same", boundary="zero", lam=1e-2, penalty="gradient")
    pipeline = Pipeline(taps, settings)
    result = pipeline.reconstruct(y.to(dtype))
    return pipeline.inverse, result, y.to(dtype), truth.to(dtype)


def record_of(result, y, path=HOSTILE, notes=(NOTE,)):
    return {
        "schema": 1,
        "command": "invert",
        "inputs": [{"path": path, "shape": list(y.shape), "axes": "CYX", "dtype": "uint8", "sha256": "0" * 64}],
        "kernel": {"path": f"kernels/{HOSTILE}", "layer": None, "shape": [3, 3], "dc_gain": 1.0},
        "boundary": "zero",
        "boundary_reason": "given by the user",
        **describe_reconstruction(result),
        "lambda_reason": "given by the user",
        "output": {"path": "out.tif", "shape": list(y.shape), "dtype": "float32"},
        "notes": list(notes),
        **describe_environment(Environment("cpu", "float32", 1, 0.5)),
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
        bands = tuple(band(at) for at in range(10))
        return ReportContents(
            record=record_of(result, y),
            data=y,
            estimate=result.image,
            diagnosis=diagnose(inverse, result, y),
            is_picture=True,
            lambda_choice=choice(),
            predicted_error=PredictedError(error, bands, trusted, 7, 0.1, 1.2, 8, 0),
            truth=truth,
        )

    return make
