"""The record of a run: one JSON document that says what was done, to what, with which result."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.predicted_error import PredictedError
from deconv_cli.diagnostics.well_posedness import WellPosedness
from deconv_cli.vocabulary import format_padding
from deconv_cli.workflows.reconstruction import Reconstruction

SCHEMA = 1
Record = dict[str, Any]


def describe_reconstruction(result: Reconstruction) -> Record:
    """Put the numbers of a reconstruction into the words of the report."""
    return {
        "padding": format_padding(result.padding),
        "method": result.choice.method,
        "method_reason": result.choice.reason,
        "lambda": result.lam,
        "lambda_choice": result.lambda_choice and describe_lambda_choice(result.lambda_choice),
        "penalty": None if result.penalty is None else result.penalty,
        "rcond": result.rcond,
        "objective": result.solution.objective,
        "weight": result.solution.weight,
        "residual": {
            "relative": result.residual.relative,
            "absolute": result.residual.absolute,
            "root_mean_square": result.residual.root_mean_square,
            "per_channel": list(result.residual.per_channel),
        },
        "border": [asdict(band) for band in result.border],
        "predicted_error": result.predicted_error and describe_predicted_error(result.predicted_error),
        "conditioning": {
            "sigma_max": result.spectrum.sigma_max,
            "sigma_min": result.spectrum.sigma_min,
            "condition": result.spectrum.condition if math.isfinite(result.spectrum.condition) else None,
            "grid": list(result.spectrum.grid),
        },
        "well_posedness": result.well_posedness and describe_well_posedness(result.well_posedness),
        "solver": {
            "status": result.solution.status.name.lower(),
            "message": result.solution.status.value,
            "iterations": result.solution.n_iterations,
            "certificate": result.solution.certificate,
            "tolerance": result.tolerance,
        },
    }


def describe_lambda_choice(choice: LambdaChoice) -> Record:
    """Put how λ was chosen into the words of the report."""
    return {
        "rule": choice.rule.value,
        "lambda": choice.lam,
        "noise_sigma": choice.sigma,
        "noise_sigma_given": choice.is_sigma_given,
        "cross_check": {"rule": choice.cross_check.rule.value, "lambda": choice.cross_check.chosen},
        "rounds": choice.n_rounds,
        "is_converged": choice.is_converged,
        "window": list(choice.window),
        "curve": {"lambda": list(choice.curve.lams), "value": [_finite(value) for value in choice.curve.values]},
        "warning": choice.warning,
    }


def describe_predicted_error(predicted: PredictedError) -> Record:
    """Put the predicted error into the words of the report."""
    return {
        "root_mean_square": predicted.root_mean_square,
        "actual_root_mean_square": predicted.actual_root_mean_square,
        "bands": [asdict(band) for band in predicted.bands],
        "trusted_depth": predicted.trusted_depth,
        "trusted_share": predicted.trusted_share,
        "model": {"noise_sigma": predicted.sigma, "exponent": predicted.exponent},
        "probes": predicted.n_probes,
        "seed": predicted.seed,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def describe_well_posedness(finding: WellPosedness) -> Record:
    """Put what the border does to a problem into the words of the report."""
    influence, pads = finding.influence, finding.advised_pads
    return {
        "is_well_posed": finding.is_well_posed,
        "reason": finding.reason,
        "border_modes": finding.n_border_modes,
        "lost_modes": finding.n_lost_modes,
        "threshold": finding.threshold,
        "windings": finding.windings and [list(axis) for axis in finding.windings],
        "frequencies": finding.n_frequencies,
        "nearest_root": finding.nearest_root,
        "influence_depth": influence
        and {"10%": influence.tenth, "1%": influence.hundredth, "0.1%": influence.thousandth},
        "is_deep": finding.is_deep,
        "advice": list(finding.advice),
        "advised_lambda": finding.advised_lambda,
        "advised_pads": pads
        and {"top": pads.before[0], "bottom": pads.after[0], "left": pads.before[1], "right": pads.after[1]},
    }
