"""The numbers of a page: those that matter most with what they mean, and all of the record."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from deconv_cli.report.record import Record
from deconv_cli.vocabulary import format_percent
from deconv_cli.workflows.diagnose import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction

Row = tuple[str, str, str]
"""Name, value, meaning."""


def key_numbers(result: Reconstruction, diagnosis: Diagnosis) -> list[Row]:
    """List the numbers that matter most."""
    return [*_of_the_solution(result, diagnosis), *_of_the_kernel(result, diagnosis), *_of_the_residual(diagnosis)]


def _of_the_solution(result: Reconstruction, diagnosis: Diagnosis) -> list[Row]:
    solution, tests = result.solution, diagnosis.tests
    rows = [("Certificate", f"{solution.certificate:.2g}", "relative size of the gradient; 0 is solved exactly")]
    if not solution.status.has_certificate:
        rows = [("Steps", str(solution.n_iterations), solution.ending)]
    if solution.distance_bound is not None:
        rows.append(
            ("Distance", f"{solution.distance_bound:.2g}", "to the exact solution at most, in parts of the estimate")
        )
    return [
        *rows,
        (
            "Residual",
            f"{result.residual.root_mean_square:.3g} rms",
            f"{format_percent(result.residual.relative, 3)} of the data",
        ),
        (
            "Noise of the data",
            "unknown" if tests.noise is None else f"{tests.noise:.3g}",
            "given by the user" if tests.is_noise_given else "at most: estimated from the quietest frequencies",
        ),
    ]


def _of_the_kernel(result: Reconstruction, diagnosis: Diagnosis) -> list[Row]:
    conditioning, picard = diagnosis.conditioning, diagnosis.picard
    condition = result.spectrum.condition
    return [
        (
            "Condition",
            f"{condition:.3g}" if math.isfinite(condition) else "infinite",
            "how much stronger relative noise can come back without λ",
        ),
        ("Noise gain", f"{conditioning.noise_gain:.3g}", "how much stronger white noise comes back with this λ"),
        (
            "Numerical rank",
            f"{conditioning.rank} of {conditioning.n_values}",
            f"singular values above {conditioning.threshold:.2g}",
        ),
        (
            "Degrees of freedom",
            f"{conditioning.degrees_of_freedom:.0f} of {conditioning.n_unknowns}",
            "how many numbers of the estimate the data decide; λ decides the others",
        ),
        (
            "Recoverable components",
            f"{picard.n_recoverable} of {picard.n_modes}",
            f"of the data, above the median of the weakest tenth, {picard.noise_floor:.3g}, and its scatter",
        ),
        (
            "Null space",
            f"{_percent(diagnosis.null_share_of_data)} of the data, "
            f"{_percent(diagnosis.null_share_of_estimate)} of the estimate",
            "energy that the kernel removes altogether",
        ),
        *_of_the_resolution(diagnosis),
    ]


def _of_the_resolution(diagnosis: Diagnosis) -> list[Row]:
    if diagnosis.resolution is None:
        return []
    width = diagnosis.resolution.widest
    size = "none" if width is None else f"{width:.2f} pixels"
    return [("Resolution", size, "how wide a single bright pixel comes back, at half of its height")]


def _of_the_residual(diagnosis: Diagnosis) -> list[Row]:
    tests, whiteness = diagnosis.tests, diagnosis.tests.whiteness
    return [
        ("Edges", f"{tests.edge_ratio:.2f}", "residual along the edges, divided by that inside"),
        (
            "Whiteness",
            f"{whiteness.largest:.2g}",
            f"largest correlation of the residual's neighbors; z = {whiteness.z_score:.3g}, "
            f"p {_probability(whiteness.p_value)} for white noise; what λ leaves of noise is never quite white",
        ),
    ]


def _probability(value: float) -> str:
    return f"= {value:.2g}" if value > 1e-99 else "< 1e-99"


def _percent(share: float) -> str:
    return format_percent(share) if share > 1e-9 else "0 %"


def all_numbers(record: Record) -> list[tuple[str, str]]:
    """List every entry of a record: its path, and its value as JSON has it."""
    return list(_entries("", record))


def _entries(path: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    if isinstance(value, dict):
        for name, member in value.items():
            yield from _entries(f"{path}.{name}" if path else str(name), member)
    elif isinstance(value, list | tuple) and any(isinstance(member, dict | list | tuple) for member in value):
        for index, member in enumerate(value):
            yield from _entries(f"{path}[{index}]", member)
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(_literal, value)) or "none"
    else:
        yield path, _literal(value)


def _literal(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
