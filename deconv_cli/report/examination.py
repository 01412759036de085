"""The report of the gradient doctor as one JSON-able record."""

from __future__ import annotations

import math
from typing import Any

from deconv_cli.gradients.fisher import Fisher
from deconv_cli.gradients.verdicts import (
    Cause,
    Comparison,
    Examination,
    GeneralFinding,
    ParameterFinding,
    Place,
    TimeSeries,
    Verdict,
)

Record = dict[str, Any]


def describe_examination(examination: Examination, expected: frozenset[str]) -> Record:
    """Put what was found into the words of the report.

    Args:
        examination: what was found.
        expected: names of parameters, and of general verdicts, that `--expect` accepts.
    """
    return {
        "loss": _number(examination.loss),
        "finite_difference_dtype": examination.dtype,
        "parameters": [_parameter(finding, finding.name in expected) for finding in examination.parameters],
        "faults": [
            {"verdict": verdict.value, "parameters": names, "causes": [_cause(cause) for cause in causes]}
            for verdict, causes, names in examination.faults()
        ],
        "general": [_general(finding, finding.verdict.value in expected) for finding in examination.general],
        "recurrent": [_series(series) for series in examination.recurrent],
        "notes": examination.notes,
        "not_checked": examination.not_checked,
        "n_evaluations": examination.n_evaluations,
        "counts": {
            verdict.value: n
            for verdict in Verdict
            if (n := sum(finding.verdict is verdict for finding in examination.parameters))
        },
    }


def describe_fisher(fisher: Fisher) -> Record:
    """Put a Fisher diagonal into the words of the report, with the common mistake beside it."""
    return {
        "kind": fisher.kind,
        "likelihood": fisher.likelihood,
        "n_samples": fisher.n_samples,
        "trace": _number(fisher.trace),
        "batch_mean_squared_trace": _number(fisher.mistaken_trace),
        "batch_size": fisher.batch_size,
        "vectorized": fisher.loop_reason is None,
        "loop_reason": fisher.loop_reason,
        "mode": "eval",
    }


def _parameter(finding: ParameterFinding, is_expected: bool) -> Record:
    return {
        "name": finding.name,
        "shape": list(finding.shape),
        "verdict": finding.verdict.value,
        "is_fault": finding.verdict.is_fault,
        "expected": is_expected,
        "detail": finding.detail or None,
        "gradient_norm": _number(finding.gradient_norm),
        "weight_norm": _number(finding.weight_norm),
        "ratio": _number(finding.ratio),
        "causes": [_cause(cause) for cause in finding.causes],
        "comparison": _comparison(finding.comparison),
        "second_order": _comparison(finding.second_order),
        "gates": {gate: _number(norm) for gate, norm in finding.blocks.items()} or None,
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
    return {"operation": cause.operation, **_place(cause.place), "why": cause.why, "instead": cause.remedy}


def _place(place: Place) -> Record:
    return {
        "file": place.file,
        "line": place.line,
        "function": place.function,
        "module": place.module or None,
        "source": place.source or None,
    }


def _general(finding: GeneralFinding, is_expected: bool) -> Record:
    return {
        "verdict": finding.verdict.value,
        "is_fault": finding.verdict.is_fault,
        "expected": is_expected,
        "detail": finding.detail,
        "causes": [_cause(cause) for cause in finding.causes],
    }


def _series(series: TimeSeries) -> Record:
    return {
        "name": series.name,
        **_place(series.place),
        "norms": [_number(norm) for norm in series.norms],
        "trend": series.trend,
        "step": series.step,
    }


def _number(value: float | None) -> float | None:
    """Leave out what JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None
