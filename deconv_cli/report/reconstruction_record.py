"""Images, kernels, reconstructions and their diagnostics as JSON records."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.predicted_error import ExpectedError
from deconv_cli.diagnostics.well_posedness import KernelProperties, WellPosedness
from deconv_cli.prompt_sentences import with_options
from deconv_cli.vocabulary import format_padding
from deconv_cli.workflows.measurement import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.trust import Doubt

Record = dict[str, Any]
"""An object of JSON: its members are objects, lists, texts, finite numbers, booleans and `None`."""


def finite_or_none(value: float | None) -> float | None:
    """Return a number if JSON can hold it, else `None`."""
    return value if value is not None and math.isfinite(value) else None


def describe_doubts(doubts: Iterable[Doubt]) -> list[Record]:
    """Describe doubts, with the names of options."""
    return [{"reason": str(doubt.reason), "sentence": with_options(doubt.sentence)} for doubt in doubts]


def describe_reconstruction(result: Reconstruction) -> Record:
    """Describe a reconstruction."""
    return {
        "is_trusted": result.is_trusted,
        "doubts": describe_doubts(result.doubts),
        "warnings": [with_options(warning) for warning in result.cautions],
        "padding": format_padding(result.padding),
        **({} if result.settings.layer.is_plain else {"layer_options": result.settings.layer.record()}),
        "method": result.choice.method,
        "method_reason": result.choice.reason,
        "lambda": list(result.lam) if isinstance(result.lam, tuple) else result.lam,
        "lambda_choice": result.lambda_choice and describe_lambda_choice(result.lambda_choice),
        "noise_model": [model.as_record() for model in result.noise],
        "penalty": result.penalty,
        "spacing": result.settings.spacing and list(result.settings.spacing),
        "objective": result.solution.objective,
        "prior": result.settings.objective,
        "prior_sentence": result.prior_sentence,
        "finest_measured_detail": result.finest,
        "noise_sigma": list(result.noise_sigmas) or None,
        "noise_sigma_in_samples": list(result.solution.noise_levels) or None,
        "weight": result.solution.weight,
        "gain": result.gains[0] if len(result.gains) == 1 else list(result.gains),
        "strength": (result.settings.strength or 1.0) if result.settings.objective == "photo" else None,
        "residual": {**vars(result.residual), "per_channel": list(result.residual.per_channel)},
        "scale": {name: value for name, value in vars(result.scale).items() if name != "larger_kernel"},
        "clipping": result.clipping and dict(vars(result.clipping)),
        "border": [dict(vars(band)) for band in result.border],
        "actual_error": result.actual_error,
        "predicted_error": result.predicted_error and describe_predicted_error(result.predicted_error),
        "conditioning": {
            "sigma_max": result.spectrum.sigma_max,
            "sigma_min": result.spectrum.sigma_min if result.is_condition_known else None,
            "condition": finite_or_none(result.spectrum.condition) if result.is_condition_known else None,
            "grid": list(result.spectrum.grid),
        },
        "lost_directions": result.lost_directions and dict(vars(result.lost_directions)),
        "determined": result.determined and dict(vars(result.determined)),
        "well_posedness": result.well_posedness and describe_well_posedness(result.well_posedness),
        "solver": {
            "status": result.solution.status.name.lower(),
            "message": result.solution.ending,
            "iterations": result.solution.n_iterations,
            "certificate": result.solution.certificate if result.solution.status.has_certificate else None,
            "distance_bound": finite_or_none(result.solution.distance_bound),
            "tolerance": result.tolerance,
        },
        "channels": [_describe_channel(channel) for channel in result.channels] or None,
    }


def _describe_channel(result: Reconstruction) -> Record:
    """Describe a channel that was restored separately."""
    choice = result.lambda_choice
    return {
        "lambda": result.settings.lam if result.settings.has_lambda else None,
        "lambda_reason": result.reasons.lam if result.settings.has_lambda else None,
        "noise_sigma": choice and choice.sigma,
        "warning": choice and choice.warning,
        "weight": result.solution.weight,
        "method": result.choice.method,
        "residual": {"relative": result.residual.relative, "root_mean_square": result.residual.root_mean_square},
        "status": result.solution.status.name.lower(),
    }


def describe_lambda_choice(choice: LambdaChoice) -> Record:
    """Describe how λ was chosen."""
    return {
        "rule": choice.rule.value,
        "lambda": choice.lam,
        "noise_sigma": choice.sigma,
        "noise_sigma_given": choice.is_sigma_given,
        "cross_check": {"rule": choice.cross_check.rule.value, "lambda": choice.cross_check.chosen},
        "rounds": choice.n_rounds,
        "is_converged": choice.is_converged,
        "window": list(choice.window),
        "curve": {"lambda": list(choice.curve.lams), "value": [finite_or_none(value) for value in choice.curve.values]},
        "warning": choice.warning,
    }


def describe_predicted_error(predicted: ExpectedError) -> Record:
    """Describe the expected error."""
    return {
        "root_mean_square": predicted.root_mean_square,
        "root_mean_square_in_samples": predicted.size,
        "actual_root_mean_square": predicted.actual_root_mean_square,
        "bands": [dict(vars(band)) for band in predicted.bands],
        "trusted_depth": predicted.trusted_depth,
        "trusted_share": predicted.trusted_share,
        "model": {"noise_sigma": predicted.sigma, "exponent": predicted.exponent},
        "probes": predicted.n_probes,
        "seed": predicted.seed,
    }


def describe_well_posedness(finding: WellPosedness) -> Record:
    """Describe what the boundary does to a problem."""
    return {
        "is_well_posed": finding.is_well_posed,
        "reason": finding.reason,
        "border_modes": finding.n_border_modes,
        "lost_modes": finding.n_lost_modes,
        "threshold": finding.threshold,
        "windings": finding.windings and [list(axis) for axis in finding.windings],
        "frequencies": finding.n_frequencies,
        "advice": list(finding.advice),
        "advised_lambda": finding.advised_lambda,
    }


def describe_diagnosis(diagnosis: Diagnosis) -> Record:
    """Describe a diagnosis."""
    conditioning, tests, widths = diagnosis.conditioning, diagnosis.tests, diagnosis.resolution
    return {
        "channel": diagnosis.channel,
        "residual_finding": tests.finding.value,
        "residual_sentence": tests.finding.sentence,
        "noise_is_given": tests.is_noise_given,
        "interior_rms": tests.interior_rms,
        "edge_ratio": tests.edge_ratio,
        "implausible_share": tests.implausible_share,
        "rank": conditioning.rank,
        "singular_values": conditioning.n_values,
        "rank_threshold": conditioning.threshold,
        "noise_gain": conditioning.noise_gain,
        "degrees_of_freedom": conditioning.degrees_of_freedom,
        "unknowns": conditioning.n_unknowns,
        "is_sampled": conditioning.is_sampled,
        "null_share_of_data": diagnosis.null_share_of_data,
        "null_share_of_estimate": diagnosis.null_share_of_estimate,
        "resolution_pixels": widths and [list(channel) for channel in widths],
    }


def describe_kernel_properties(properties: KernelProperties) -> Record:
    """Describe a kernel and the effect of each boundary."""
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
