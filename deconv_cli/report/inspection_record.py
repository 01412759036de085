"""The numbers of an image or a kernel as JSON records."""

from __future__ import annotations

from deconv_cli.report.reconstruction_record import describe_well_posedness
from deconv_cli.report.record import Record, finite_or_none
from deconv_cli.workflows.kernel_facts import KernelFacts, SampleFacts


def describe_samples(facts: SampleFacts) -> Record:
    """Describe samples; a mean that float64 cannot hold is left out."""
    return {
        "samples": facts.n_samples,
        "nan": facts.n_nan,
        "infinite": facts.n_infinite,
        "minimum": facts.minimum,
        "maximum": facts.maximum,
        "mean": finite_or_none(facts.mean),
        "standard_deviation": finite_or_none(facts.standard_deviation),
    }


def describe_kernel_facts(facts: KernelFacts) -> Record:
    """Describe a kernel, and what each boundary would do."""
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
            "condition": finite_or_none(spectrum.condition),
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
