"""The benchmarks can be run: every case is well-formed, a tiny one gives figures, and a failing one names its error."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest

from benchmarks import measuring, textbook
from benchmarks.__main__ import QUESTIONS
from benchmarks.measuring import Case, Scale

SUMMED_UP = ("blind", "choice")
"""Questions whose tables have no row for each case."""
TINY: dict[str, object] = {"size": 8, "n_channels": 2}
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("is_quick", [True, False])
def test_every_case_can_be_called_in_another_process(question, is_quick):
    cases = question.cases(Scale(is_quick, peer_limit_s=1.0))
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert getattr(sys.modules[case.function.__module__], case.function.__qualname__) is case.function
        settings = json.loads(json.dumps(case.settings))
        inspect.signature(case.function).bind(**settings)


@pytest.mark.parametrize("question", [QUESTIONS[name] for name in QUESTIONS if name not in SUMMED_UP])
def test_a_report_of_failures_alone_reaches_nothing(question):
    cases = question.cases(Scale(is_quick=False, peer_limit_s=1.0))
    report = question.report({case.name: {"failed": f"no {case.name}"} for case in cases})
    assert report.targets
    assert {target.verdict for target in report.targets} == {"not measured"}
    assert all(f"no {case.name}" in report.markdown() for case in cases)


def test_a_tiny_case_runs_in_its_own_process():
    figures = measuring.measure(Case("tiny", textbook.package, TINY | {"boundary": "zero", "lam": 0.0}))
    assert figures["build_s"] > 0
    assert figures["error_zero"] < 1e-6
    assert figures["certificate"] < 1e-10


def test_what_gives_no_figures_says_why():
    assert "no_such_peer" in measuring.measure(Case("a", textbook.package, peer="no_such_peer"))["failed"]
    assert "GiB" in measuring.measure(Case("b", textbook.package, n_bytes=1e18))["failed"]
