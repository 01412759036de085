"""A finished run as one JSON document: what was done, to what, with which result."""

from __future__ import annotations

import math
import platform
from typing import Any

import torch

from deconv_cli.kernels.blind.blur_map import BlurMap
from deconv_cli.kernels.blind.estimate import LEAST_AREA, NO_BLUR, KernelEstimate
from deconv_cli.kernels.blind.free_form import FreeForm
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.report.reconstruction_record import (
    SCHEMA,
    Record,
    describe_diagnosis,
    describe_reconstruction,
)
from deconv_cli.report.run import (
    Environment,
    ForwardRun,
    ImageRun,
    InputFile,
    InvertRun,
    KernelInput,
)
from deconv_cli.settings import with_options
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import format_padding, package_version


def describe_run(run: ImageRun) -> Record:
    """Write a run as a JSON object."""
    return {
        "schema": SCHEMA,
        "command": run.command,
        "inputs": [describe_input(run.source)],
        "kernel": describe_kernel(run.kernel),
        **_details(run),
        "output": dict(vars(run.output)),
        "notes": [with_options(note) for note in run.notes],
        **describe_environment(run.environment),
        "rerun": run.rerun,
    }


def describe_input(source: InputFile) -> Record:
    """Describe an input; its spacing only where it is known."""
    left_out = {"is_picture"} | ({"spacing"} if source.spacing is None else set())
    return {name: value for name, value in vars(source).items() if name not in left_out}


def _details(run: ImageRun) -> Record:
    """Describe what is particular to a command."""
    if isinstance(run, ForwardRun):
        light = run.light
        return {
            "padding": format_padding(run.padding),
            "boundary": run.boundary,
            **({} if run.layer.is_plain else {"layer_options": run.layer.record(), "input_size": list(run.input_size)}),
            **_describe_light(light.light, light.reason, light.curve),
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
        **_describe_light(result.settings.light, result.reasons.light, result.tone_curve),
        **describe_reconstruction(result),
        "lambda_reason": None if result.lam is None else result.reasons.lam,
        **({} if run.diagnosis is None else {"diagnosis": describe_diagnosis(run.diagnosis)}),
    }


def _describe_light(light: str, reason: str, curve: ToneCurve | None) -> Record:
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
        return "no blur was found: its spectrum is that of a sharp picture, or of a blur of another kind"
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
