"""What the search for a blur found, as JSON."""

from __future__ import annotations

from typing import Any

from deconv_cli.kernels.blind.estimate import LEAST_AREA, NO_BLUR, KernelEstimate
from deconv_cli.kernels.blind.free_form import FreeForm
from deconv_cli.workflows.blur_map import BlurMap


def describe_estimate(estimate: KernelEstimate) -> dict[str, Any]:
    """Describe an estimate: its family, each number with its standard error, and how far behind the next family is."""
    return {
        "found": estimate.found,
        "family": estimate.family,
        "parameters": {p.name.lower(): {"value": p.value, "error": p.error} for p in estimate.parameters},
        "kernel": estimate.text if estimate.found else None,
        "runner_up": None if estimate.runner_up is None else estimate.runner_up.text,
        "log_likelihood_ratio": estimate.log_likelihood_ratio,
        "log_likelihood_ratio_to_no_blur": estimate.evidence,
        "parts": [part.text for part in estimate.parts],
        "doubt": estimate.doubt,
        "reason": None if estimate.found else describe_found(estimate),
        "candidates": [
            {"kernel": c.text, "log_likelihood_below_best": c.misfit - estimate.candidates[0].misfit}
            for c in estimate.candidates
        ],
    }


def describe_found(estimate: KernelEstimate) -> str:
    """Say what was found in a sentence without its full stop."""
    if estimate.slight is not None:
        return (
            f"no blur was found: the likeliest, {estimate.slight.text}, covers less than {LEAST_AREA:g} pixels, as "
            "much as lenses and resampling leave in sharp pictures"
        )
    if not estimate.found:
        return "no blur was found: the spectrum of the picture is that of a sharp one, or of a blur of no known family"
    numbers = ", ".join(f"{p.name.lower()} {p.text}" for p in estimate.parameters)
    sentence = f"{estimate.family} with {numbers}"
    if estimate.runner_up is None or estimate.log_likelihood_ratio is None:
        return sentence
    other = "no blur at all" if estimate.runner_up.family == NO_BLUR else estimate.runner_up.text
    return f"{sentence}; next comes {other}, e^{estimate.log_likelihood_ratio:.1f} times less likely"


def describe_free(form: FreeForm) -> dict[str, Any]:
    """Describe a kernel of free form, but for its taps, which are written into a file."""
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
