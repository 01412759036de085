"""The report of the gradient checker, and a Fisher diagonal, as records that JSON can hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from deconv_cli.gradients.findings import Cause, Finding, GradientReport, ParameterFinding, summarize
from deconv_cli.gradients.fisher_diagonal import FisherDiagonal
from deconv_cli.gradients.tracing.code_location import CodeLocation

Record = dict[str, Any]


def describe_gradients(report: GradientReport, expected: frozenset[str]) -> Record:
    """Describe what was found; the user expects some parameters, and verdicts on the model as a whole, by name."""
    return {
        "summary": summarize(report.parameters, report.general, expected),
        "loss": _plain(report.loss),
        "finite_difference_dtype": report.dtype,
        "parameters": [_plain(finding) | {"expected": finding.name in expected} for finding in report.parameters],
        "faults": _plain(report.faults()),
        "remarks": _plain(report.remarks()),
        "general": [_plain(finding) | {"expected": finding.verdict in expected} for finding in report.general],
        "notes": list(report.notes),
        "not_checked": list(report.not_checked),
        "n_evaluations": report.n_evaluations,
        "counts": dict(Counter(str(finding.verdict) for finding in report.parameters)),
    }


def describe_fisher(fisher: FisherDiagonal) -> Record:
    """Describe a Fisher diagonal, and the squared gradient of batch means, which is no Fisher matrix."""
    return {
        "kind": fisher.kind,
        "likelihood": fisher.likelihood,
        "n_samples": fisher.n_samples,
        "trace": _plain(fisher.trace),
        "batch_mean_squared_trace": _plain(fisher.batch_mean_squared_trace),
        "batch_size": fisher.batch_size,
        "vectorized": fisher.loop_reason is None,
        "loop_reason": fisher.loop_reason,
        "mode": "eval",
    }


def _plain(value: Any) -> Any:  # noqa: ANN401  any field of a report, and what JSON has for it
    """Turn a value of a report into what JSON can hold; it has no word for NaN and infinity."""
    if isinstance(value, CodeLocation):
        names = ("file", "line", "function", "module", "source")
        return {name: getattr(value, name) or None for name in names}
    if is_dataclass(value) and not isinstance(value, type):
        record = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, Cause):
            record |= record.pop("location")
            record["instead"] = record.pop("suggestion")
        if isinstance(value, Finding):
            record |= {"is_fault": value.is_fault, "detail": value.detail or None}
        if isinstance(value, ParameterFinding):
            record |= {"ratio": _plain(value.ratio)}
        return record
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, Enum):
        return str(value.value) if isinstance(value, str) else value.name.lower()
    return None if isinstance(value, float) and not math.isfinite(value) else value
