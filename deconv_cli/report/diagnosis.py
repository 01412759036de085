"""A diagnosis in the words of the report."""

from __future__ import annotations

from deconv_cli.report.record import Record
from deconv_cli.workflows.diagnose import Diagnosis


def describe_diagnosis(diagnosis: Diagnosis) -> Record:
    """Put what was found out about a restoration into a JSON record."""
    conditioning, picard, tests = diagnosis.conditioning, diagnosis.picard, diagnosis.tests
    whiteness = tests.whiteness
    return {
        "residual_finding": tests.finding.value,
        "residual_sentence": tests.finding.sentence,
        "noise": tests.noise,
        "noise_is_given": tests.is_noise_given,
        "interior_rms": tests.interior_rms,
        "edge_ratio": tests.edge_ratio,
        "implausible_share": tests.implausible_share,
        "whiteness": {
            "largest_correlation": whiteness.largest,
            "statistic": whiteness.statistic,
            "lags": whiteness.n_lags,
            "p_value": whiteness.p_value,
            "z_score": whiteness.z_score,
        },
        "rank": conditioning.rank,
        "singular_values": conditioning.n_values,
        "rank_threshold": conditioning.threshold,
        "noise_gain": conditioning.noise_gain,
        "degrees_of_freedom": conditioning.degrees_of_freedom,
        "unknowns": conditioning.n_unknowns,
        "is_sampled": conditioning.is_sampled,
        "null_share_of_data": diagnosis.null_share_of_data,
        "null_share_of_estimate": diagnosis.null_share_of_estimate,
        "noise_floor": picard.noise_floor,
        "recoverable": picard.n_recoverable,
        "components": picard.n_modes,
        "resolution_pixels": [list(pair) for pair in diagnosis.resolution.widths],
    }
