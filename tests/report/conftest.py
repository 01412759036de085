"""A page's contents: a small restoration with everything that a page can show, and hostile names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from browser import Browser, find_browser
from torch.nn import functional

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.lambda_rules import LambdaCurve
from deconv_cli.diagnostics.predicted_error import ErrorBand, PredictedError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.report.page import render_page
from deconv_cli.report.run import Environment, InputFile, InvertRun, KernelInput, OutputFile
from deconv_cli.report.shown_images import images_to_show
from deconv_cli.settings import ResolvedSettings
from deconv_cli.vocabulary import Convention, LambdaRule
from deconv_cli.workflows.measurement import diagnose
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
        actual=2.5 - distance / 10,
    )


def restored(n_channels=1, size=(60, 72), *, dtype=torch.float32):
    """A blurred patch, or signal or stack, with its inverse and its reconstruction."""
    generator, n_axes = torch.Generator().manual_seed(n_channels), len(size)
    average, convolve = (getattr(functional, f"{name}{n_axes}d") for name in ("avg_pool", "conv"))
    truth = average(100 * torch.rand(n_channels, *(n + 4 for n in size), generator=generator), 5, 1)
    taps = torch.full((3,) * n_axes, 3.0**-n_axes)
    y = convolve(truth[:, None], taps[None, None], padding="same")[:, 0]
    y = y + 0.1 * torch.randn(y.shape, generator=generator)
    settings = ResolvedSettings(padding="same", boundary="zero", lam=1e-2, penalty="gradient", dimensions=n_axes)
    pipeline = Pipeline(taps, settings)
    result = pipeline.reconstruct(y.to(dtype))
    return pipeline.inverse, result, y.to(dtype), truth.to(dtype)


def run_of(result, y, diagnosis, path=HOSTILE, notes=(NOTE,)):
    n_axes = y.ndim - 1
    kernel = Kernel.from_tensor(torch.full((3,) * n_axes, 3.0**-n_axes), dimensions=n_axes)
    return InvertRun(
        command="invert",
        source=InputFile(path, tuple(y.shape), "CYX", "uint8", "0" * 64, is_picture=True),
        kernel=KernelInput(kernel, f"kernels/{HOSTILE}", Convention.CORRELATION, None, None, has_bias=False),
        output=OutputFile("out.tif", tuple(result.image.shape), "CYX", "float32", "0" * 64),
        notes=tuple(notes),
        environment=Environment("cpu", "float32", 1, 0.5),
        rerun=f"deconv invert --kernel=k.npy --lambda=0.01 --output=out.tif --force -- '{HOSTILE}'",
        reconstruction=result,
        diagnosis=diagnosis,
    )


@dataclass(frozen=True, eq=False)
class Contents:
    """What a page is rendered from."""

    run: InvertRun
    data: torch.Tensor
    truth: torch.Tensor | None = None

    def render(self):
        return render_page(self.run, self.data, self.truth)

    def images(self):
        run = self.run
        n_axes = run.kernel.kernel.n_axes
        residual = run.diagnosis.residual
        return images_to_show(run.source, n_axes, run.reconstruction, self.data, residual, self.truth)

    def with_result(self, **parts):
        return replace(self, run=replace(self.run, reconstruction=replace(self.run.reconstruction, **parts)))

    def with_diagnosis(self, **parts):
        return replace(self, run=replace(self.run, diagnosis=replace(self.run.diagnosis, **parts)))

    def with_source(self, **parts):
        return replace(self, run=replace(self.run, source=replace(self.run.source, **parts)))


@pytest.fixture
def browse(tmp_path):
    """Open a page in a browser."""
    opened = []

    def open_page(text, **options):
        path = tmp_path / "page #1 &.html"
        path.write_text(text, encoding="utf-8")
        browser = Browser(find_browser(), tmp_path / "profile", **options)
        opened.append(browser)
        browser.open(path)
        return browser, path

    yield open_page
    for browser in opened:
        browser.close()


@pytest.fixture(scope="session")
def contents():
    """Make the contents of a page without its optional parts."""

    def make(n_channels=1, size=(60, 72)) -> Contents:
        inverse, result, y, _ = restored(n_channels, size)
        return Contents(run_of(result, y, diagnose(inverse, result, y)), y)

    return make


@pytest.fixture(scope="session")
def full_contents():
    """Make contents with every optional part."""

    def make(n_channels=1, size=(60, 72)) -> Contents:
        inverse, result, y, truth = restored(n_channels, size)
        error = (result.image - truth).abs() + 0.5
        trusted = torch.ones(size, dtype=torch.bool)
        trusted[:7] = False
        bands = tuple(band(at) for at in range(10))
        reasons = replace(result.reasons, lam=choice().reason)
        predicted = PredictedError(bands, 7, 0.1, 1.2, 8, 0, error, trusted)
        whole = replace(result, lambda_choice=choice(), predicted_error=predicted, reasons=reasons)
        return Contents(run_of(whole.compared_with(truth), y, diagnose(inverse, result, y)), y, truth)

    return make
