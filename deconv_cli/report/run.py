"""Finished runs of commands: the records of which table, page and one JSON document are made."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from typing import Any

import torch

from deconv_cli.kernels.blind.blur_map import BlurMap
from deconv_cli.kernels.blind.blurred_picture import MAX_SATURATED
from deconv_cli.kernels.blind.estimate import LEAST_AREA, NO_BLUR, KernelEstimate
from deconv_cli.kernels.blind.free_form import FreeForm
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.prompt_sentences import with_options
from deconv_cli.report.reconstruction_record import Record, describe_diagnosis, describe_reconstruction
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import SCHEMA, Convention, PaddingLike, Size, format_padding, format_percent, package_version
from deconv_cli.workflows.arithmetic import ChosenLight
from deconv_cli.workflows.lambda_series import LambdaView
from deconv_cli.workflows.measurement import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction


@dataclass(frozen=True)
class InputFile:
    """An input as stored, with the SHA-256 of its bytes, and the spacing of its samples in micrometers, if known."""

    path: str
    shape: tuple[int, ...]
    axes: str
    dtype: str
    sha256: str
    is_picture: bool
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class KernelInput:
    """A kernel with the path of its file and the SHA-256, or the words that made it.

    `has_bias` says whether the bias of the layer was used; `estimate` is the result if the kernel was estimated.
    """

    kernel: Kernel
    path: str
    convention: Convention
    sha256: str | None
    layer: str | None
    has_bias: bool
    estimate: KernelEstimate | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the taps, without channel axes if the kernel does not mix channels."""
        taps = self.kernel.all_taps
        if self.kernel.field is not None:
            return tuple(taps.shape)
        if self.kernel.is_per_channel:
            return (taps.shape[0], *taps.shape[2:])
        return tuple(taps.shape[2:] if self.kernel.shared else taps.shape)


@dataclass(frozen=True)
class OutputFile:
    """An output as written, with the SHA-256 of its samples."""

    path: str
    shape: tuple[int, ...]
    axes: str
    dtype: str
    samples_sha256: str


@dataclass(frozen=True)
class Environment:
    """Device, precision, peak memory in bytes, and time in seconds of a run."""

    device: str
    dtype: str
    peak_memory_bytes: int
    time_s: float


@dataclass(frozen=True, eq=False)
class Run:
    """A run with a kernel; `rerun` is the command line that repeats it."""

    kernel: KernelInput
    notes: tuple[str, ...]
    environment: Environment
    rerun: str


@dataclass(frozen=True, eq=False)
class ImageRun(Run):
    """A run that turns images into images."""

    command: str
    source: InputFile
    output: OutputFile


@dataclass(frozen=True, eq=False)
class ForwardRun(ImageRun):
    """A finished run of `deconv forward`.

    `noise` is the noise that was added, and `tap` the expression that replaced products, as they were typed.
    """

    padding: PaddingLike
    boundary: str
    input_size: Size
    light: ChosenLight
    noise: str | None
    seed: int | None
    tap: str | None = None
    layer: LayerOptions = PLAIN


@dataclass(frozen=True, eq=False)
class InvertRun(ImageRun):
    """A finished run of `deconv invert`; the diagnosis, and a detail under other λ, are for a page."""

    reconstruction: Reconstruction
    diagnosis: Diagnosis | None
    lambda_views: tuple[LambdaView, ...] = ()


def describe_run(run: ImageRun) -> Record:
    """Write a run as a JSON object."""
    return {
        "schema": SCHEMA,
        "command": run.command,
        # The spacing only where it is known.
        "inputs": [{name: v for name, v in vars(run.source).items() if name != "is_picture" and v is not None}],
        "kernel": describe_kernel(run.kernel),
        **_details(run),
        "output": dict(vars(run.output)),
        "notes": [with_options(note) for note in run.notes],
        **describe_environment(run.environment),
        "rerun": run.rerun,
    }


def _details(run: ImageRun) -> Record:
    """Describe what is particular to a command."""
    if isinstance(run, ForwardRun):
        light = run.light
        return {
            "padding": format_padding(run.padding),
            "boundary": run.boundary,
            **({} if run.layer.is_plain else {"layer_options": run.layer.record(), "input_size": list(run.input_size)}),
            **describe_light(light.light, light.reason, light.curve),
            "noise": run.noise,
            "seed": run.seed,
            **({} if run.tap is None else {"tap": run.tap}),
        }
    assert isinstance(run, InvertRun)
    result = run.reconstruction
    return {
        "dimensions": result.settings.dimensions,
        "boundary": result.boundary,
        "boundary_reason": result.reasons.boundary,
        **describe_light(result.settings.light, result.reasons.light, result.tone_curve),
        **describe_reconstruction(result),
        "lambda_reason": None if result.lam is None else result.reasons.lam,
        **({} if run.diagnosis is None else {"diagnosis": describe_diagnosis(run.diagnosis)}),
    }


def describe_light(light: str, reason: str, curve: ToneCurve | None) -> Record:
    """Describe the light that a convolution acted in, with the name of the tone curve."""
    described = None if curve is None else {"name": curve.name, "white": curve.white}
    return {"light": str(light), "light_reason": reason, "tone_curve": described}


def describe_kernel(source: KernelInput) -> Record:
    """Describe a kernel and where it came from."""
    kernel = source.kernel
    return {
        "path": source.path,
        "layer": source.layer,
        "shape": list(source.shape),
        "convention": source.convention.value,
        "sha256": source.sha256,
        "dc_gain": _dc_gain(kernel),
        "field": kernel.field and {"rows": list(kernel.field.rows), "columns": list(kernel.field.columns)},
        "bias": source.has_bias,
        **({} if source.estimate is None else {"estimate": describe_estimate(source.estimate)}),
    }


def _dc_gain(kernel: Kernel) -> float | list[float] | list[list[float]]:
    gains = kernel.dc_gain
    if kernel.field is not None:
        return kernel.field.sums
    if kernel.is_per_channel:
        return [row[0] for row in gains]
    return gains[0][0] if kernel.shared else gains


def describe_environment(environment: Environment) -> Record:
    """Describe what a result was computed with."""
    return {
        **vars(environment),
        "versions": {
            "deconv": package_version("deconv-cli"),
            "torch": torch.__version__,
            "numpy": package_version("numpy"),
            "python": platform.python_version(),
        },
    }


def describe_estimate(estimate: KernelEstimate) -> dict[str, Any]:
    """Describe an estimate: its family, each number with its standard error, and the distance of the next family."""
    return {
        "found": estimate.found,
        "family": estimate.family,
        "parameters": {p.name.lower(): {"value": p.value, "error": p.error or None} for p in estimate.parameters},
        "kernel": estimate.text if estimate.found else None,
        "runner_up": None if estimate.runner_up is None else estimate.runner_up.text,
        "log_likelihood_ratio": estimate.log_likelihood_ratio,
        "log_likelihood_ratio_to_no_blur": estimate.evidence,
        "whole": None if estimate.whole is None else estimate.whole.text,
        "reason": None if estimate.found else describe_found(estimate),
        "doubt": estimate.doubt,
        "candidates": [
            {"kernel": c.text, "log_likelihood_below_best": c.misfit - estimate.candidates[0].misfit}
            for c in estimate.candidates
        ],
    }


def describe_found(estimate: KernelEstimate) -> str:
    """Describe the estimated kernel in a sentence without a full stop."""
    if estimate.slight is not None:
        return (
            f"no blur was found: the most likely one, {estimate.slight.text}, covers less than {LEAST_AREA:g} pixels, "
            "as in sharp pictures after a lens or resampling"
        )
    if not estimate.found:
        found = "no blur was found: its spectrum is that of a sharp picture, or of a blur of another kind"
        full = f"{format_percent(estimate.saturated)} of its pixels are saturated, which may hide one"
        advice = "" if estimate.saturated <= MAX_SATURATED else f"; {full}: expose less, or give the kernel"
        return f"{found}{advice}"
    numbers = ", ".join(f"{p.name.lower()} {p.text}" for p in estimate.parameters)
    sentence = f"{estimate.family} with {numbers}"
    if estimate.runner_up is None or estimate.log_likelihood_ratio is None:
        return sentence
    if estimate.rival is not None:
        return f"{sentence}; {estimate.rival.text} explains the picture about as well, so try it as --kernel too"
    other = "no blur at all" if estimate.runner_up.family == NO_BLUR else estimate.runner_up.text
    ratio = estimate.log_likelihood_ratio
    times = f"about {float(f'{math.exp(ratio):.2g}'):g}" if ratio < math.log(1e6) else "over a million"
    return f"{sentence}; next comes {other}, {times} times less likely"


def describe_free(form: FreeForm) -> dict[str, Any]:
    """Describe a kernel of free form without its taps, which are in a file."""
    return {
        "shape": list(form.taps.shape),
        "noise_sigma": form.noise_sigma,
        "scales": form.n_scales,
        "iterations": form.n_iterations,
        "part": [[s.start, s.stop] for s in form.part],
    }


def describe_map(mapped: BlurMap) -> dict[str, Any]:
    """Describe the kernel in each part of a picture."""
    return {
        "is_uniform": mapped.is_uniform,
        "rows": list(mapped.rows),
        "columns": list(mapped.columns),
        "kernels": [[part.text if part.found else None for part in row] for row in mapped.parts],
    }
