"""The numbers of an image or a kernel as JSON records."""

from __future__ import annotations

from deconv_cli.report.reconstruction_record import describe_well_posedness
from deconv_cli.report.record import Record, finite_or_none
from deconv_cli.workflows.inspection import KernelProperties, SampleStatistics


def describe_samples(statistics: SampleStatistics) -> Record:
    """Describe samples; a mean that float64 cannot hold is left out."""
    return {
        "samples": statistics.n_samples,
        "nan": statistics.n_nan,
        "infinite": statistics.n_infinite,
        "minimum": statistics.minimum,
        "maximum": statistics.maximum,
        "mean": finite_or_none(statistics.mean),
        "standard_deviation": finite_or_none(statistics.standard_deviation),
    }


def describe_kernel_properties(properties: KernelProperties) -> Record:
    """Describe a kernel, and what each boundary would do."""
    kernel, spectrum = properties.kernel, properties.spectrum
    return {
        "channels": None if kernel.shared else [kernel.taps.shape[1], kernel.taps.shape[0]],
        "size": list(kernel.size),
        "origin": list(properties.origin),
        "centroid_offset": list(properties.centroid),
        "is_symmetric": properties.is_symmetric,
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
            for border in properties.borders
        ],
    }
