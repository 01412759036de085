"""The report of the gradient checker, and a Fisher diagonal, as records that JSON can hold."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from deconv_cli.gradients.finding import Cause, Finding
from deconv_cli.gradients.finite_differences.comparison import Comparison
from deconv_cli.gradients.fisher_matrix.diagonal import FisherDiagonal
from deconv_cli.gradients.gradient_report import GradientReport, ParameterFinding
from deconv_cli.gradients.recurrence.time_series import TimeSeries
from deconv_cli.gradients.tracing.code_location import CodeLocation

Record = dict[str, Any]


def describe_gradients(report: GradientReport, expected: frozenset[str]) -> Record:
    """Describe what was found.

    Args:
        report: what was found.
        expected: names of parameters, and verdicts on the model as a whole, that the user expects.
    """
    return {
        "loss": _number(report.loss),
        "finite_difference_dtype": report.dtype,
        "parameters": [_parameter(finding, finding.name in expected) for finding in report.parameters],
        "faults": [
            {
                "verdict": str(fault.verdict),
                "parameters": list(fault.parameters),
                "causes": [_cause(cause) for cause in fault.causes],
            }
            for fault in report.faults()
        ],
        "general": [_finding(finding, finding.verdict in expected) for finding in report.general],
        "recurrent": [_series(series) for series in report.recurrent],
        "notes": list(report.notes),
        "not_checked": list(report.not_checked),
        "n_evaluations": report.n_evaluations,
        "counts": dict(Counter(str(finding.verdict) for finding in report.parameters)),
    }


def describe_fisher(fisher: FisherDiagonal) -> Record:
    """Describe a Fisher diagonal, with the squared gradient of batch means beside it, which is no Fisher matrix."""
    return {
        "kind": fisher.kind,
        "likelihood": fisher.likelihood,
        "n_samples": fisher.n_samples,
        "trace": _number(fisher.trace),
        "batch_mean_squared_trace": _number(fisher.batch_mean_squared_trace),
        "batch_size": fisher.batch_size,
        "vectorized": fisher.loop_reason is None,
        "loop_reason": fisher.loop_reason,
        "mode": "eval",
    }


def _finding(finding: Finding, is_expected: bool) -> Record:
    return {
        "verdict": str(finding.verdict),
        "is_fault": finding.is_fault,
        "expected": is_expected,
        "detail": finding.detail or None,
        "causes": [_cause(cause) for cause in finding.causes],
    }


def _parameter(finding: ParameterFinding, is_expected: bool) -> Record:
    return {
        "name": finding.name,
        "shape": list(finding.shape),
        **_finding(finding, is_expected),
        "gradient_norm": _number(finding.gradient_norm),
        "weight_norm": _number(finding.weight_norm),
        "ratio": _number(finding.ratio),
        "comparison": _comparison(finding.comparison),
        "second_order": _comparison(finding.second_order),
        "gates": {gate: _number(norm) for gate, norm in finding.gates.items()} or None,
    }


def _comparison(comparison: Comparison | None) -> Record | None:
    if comparison is None:
        return None
    return {
        "autograd": _number(comparison.autograd),
        "numeric": _number(comparison.numeric),
        "error_bar": _number(comparison.error_bar),
        "resolution": _number(comparison.resolution),
        "element": None if comparison.element is None else list(comparison.element),
        "n_wrong": comparison.n_wrong,
        "n_tried": comparison.n_tried,
        "ratio": _number(comparison.ratio),
        "ratio_range": None if comparison.ratio_range is None else [_number(r) for r in comparison.ratio_range],
    }


def _cause(cause: Cause) -> Record:
    return {
        "operation": cause.operation,
        **_location(cause.location),
        "why": cause.why,
        "instead": cause.suggestion,
    }


def _location(location: CodeLocation) -> Record:
    return {
        "file": location.file,
        "line": location.line,
        "function": location.function,
        "module": location.module or None,
        "source": location.source or None,
    }


def _series(series: TimeSeries) -> Record:
    return {
        "name": series.name,
        **_location(series.location),
        "norms": [_number(norm) for norm in series.norms],
        "trend": series.trend,
        "step": series.step,
    }


def _number(value: float | None) -> float | None:
    """Leave out NaN and infinity, which JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None
