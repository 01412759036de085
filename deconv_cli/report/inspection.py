"""The facts of a file in the words of the report."""

from __future__ import annotations

import math

from deconv_cli.report.record import Record, describe_well_posedness
from deconv_cli.workflows.inspect import KernelFacts, SampleFacts


def describe_samples(facts: SampleFacts) -> Record:
    """Put the numbers of samples into a JSON record; a mean that float64 cannot hold is left out."""
    return {
        "samples": facts.n_samples,
        "nan": facts.n_nan,
        "infinite": facts.n_infinite,
        "minimum": facts.minimum,
        "maximum": facts.maximum,
        "mean": _finite(facts.mean),
        "standard_deviation": _finite(facts.standard_deviation),
    }


def describe_kernel_facts(facts: KernelFacts) -> Record:
    """Put the numbers of a kernel into a JSON record."""
    kernel, spectrum = facts.kernel, facts.spectrum
    return {
        "channels": None if kernel.shared else [kernel.taps.shape[1], kernel.taps.shape[0]],
        "size": list(kernel.size),
        "origin": list(facts.origin),
        "centroid_offset": list(facts.centroid),
        "is_symmetric": facts.is_symmetric,
        "dc_gain": kernel.dc_gain[0][0] if kernel.shared else kernel.dc_gain,
        "spectrum": {
            "image_size": list(spectrum.image_size),
            "grid": list(spectrum.grid),
            "sigma_max": spectrum.sigma_max,
            "sigma_min": spectrum.sigma_min,
            "condition": _finite(spectrum.condition),
        },
        "borders": [
            {
                "boundary": border.boundary,
                "is_possible": border.finding is not None,
                "reason": border.reason,
                "well_posedness": None if border.finding is None else describe_well_posedness(border.finding),
            }
            for border in facts.borders
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
