"""The benchmarks can be run: every case is well-formed, a tiny one gives figures, and what fails says so."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import measuring, peers, problems, speed, stacks, textbook
from benchmarks.__main__ import QUESTIONS
from benchmarks.measuring import Case, Scale
from benchmarks.printing import Target

SUMMED_UP = ("blind", "choice")
"""Questions whose tables have no row for each case."""
TINY: dict[str, object] = {"size": 8, "n_channels": 2}
ROOT = Path(__file__).parents[1]
PEAK = """
import torch
from benchmarks import measuring
with measuring.peak_memory() as peak:
    torch.ones(64 * 2**20, dtype=torch.uint8)
print(peak.n_bytes)
"""


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


def test_what_gives_no_figures_says_why(monkeypatch):
    assert "no_such_peer" in measuring.measure(Case("a", textbook.package, peer="no_such_peer"))["failed"]
    assert "GiB" in measuring.measure(Case("b", textbook.package, n_bytes=1e18))["failed"]
    monkeypatch.setattr(measuring.subprocess, "run", lambda command, **_: Ended(command))
    assert measuring.measure(Case("c", textbook.package))["failed"] == "ValueError: told last"


class Ended:
    returncode, stderr, stdout = 1, "Traceback:\nValueError: told last\n", ""

    def __init__(self, command):
        assert command[-3:] == ["benchmarks.textbook", "package", "{}"]


def test_targets_are_judged():
    assert Target("ratio", 20, 25.0, is_floor=True).verdict == "reached"
    assert Target("error", 1e-8, 1e-9).verdict == "reached"
    assert "not reached" in Target("error", 1e-8, 1e-7).verdict
    assert "not reached" in Target("ratio", 20, 15.0, is_floor=True).verdict


def test_the_shortest_run_to_the_goal_is_found():
    truth = torch.ones(1, 2, 2, dtype=torch.float64)
    asked = []

    def halve(n_iterations):
        asked.append(n_iterations)
        return truth * (1 + 0.5**n_iterations)

    figures = peers._least_time(halve, truth, limit_s=1e6)
    assert (figures["is_reached"], figures["n_iterations"]) == ("yes", 10)
    assert max(asked) == 16


def test_a_run_that_gets_nowhere_ends_with_its_time(monkeypatch):
    clock = iter(range(0, 10**6, 1))
    monkeypatch.setattr(peers.time, "perf_counter", lambda: next(clock))
    truth = torch.ones(1, 2, 2, dtype=torch.float64)
    figures = peers._least_time(lambda n_iterations: 0 * truth, truth, limit_s=1.0)
    assert (figures["is_reached"], figures["error"], figures["charged_s"]) == ("no", 1.0, 1.0)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured on Linux alone")
def test_peak_memory_sees_what_is_freed_again():
    """In a process of its own: one that has run other tests may hold as much freed memory, and take nothing new."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.9 * 64 * 2**20 < int(done.stdout) < 2 * 64 * 2**20


def test_problems_are_what_they_say():
    large = problems.photograph(1024)
    assert large.shape == (1, 1024, 1024)
    jump, step = (large[0, -1] - large[0, 0]).abs().mean(), (large[0, 1] - large[0, 0]).abs().mean()
    assert jump > 2 * step  # else the picture were circular, and every border right
    assert float(problems.disk_kernel(7).sum()) == pytest.approx(1)
    black, gray = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.1)
    assert problems.psnr(gray, black) == pytest.approx(20, abs=1e-5)
    framed = gray.clone()
    framed[..., 2:-2, 2:-2] = 0.5
    assert problems.psnr(framed, black, band=2) == pytest.approx(20, abs=1e-5)
    kernel = torch.zeros(3, 3, dtype=torch.float64)
    kernel[1, 1] = 2
    y = problems.features(1, 8)
    assert torch.allclose(problems.one_shot_filter(y, kernel, 0.0), y / 2)


def test_stacks_are_what_they_say():
    psf = problems.microscope_psf((9, 7, 7))
    assert float(psf.sum()) == pytest.approx(1)
    widths = (psf * (torch.arange(7.0) - 3) ** 2).sum((1, 2)) / psf.sum((1, 2))
    assert int(widths.argmin()) == 4
    assert widths[8] > widths[0]
    assert torch.equal(psf, psf.flip(1))
    scene = problems.cells((20, 40, 48))
    assert scene.shape == (20, 40, 48)
    assert scene.min() >= 0
    assert torch.equal(scene, problems.cells((20, 40, 48)))
    assert scene.median() < 0.1 < scene.quantile(0.95) < 1 < scene.max()


def test_a_tiny_stack_is_restored_better_than_it_came():
    sizes = {"size": [10, 24, 24], "taps": [5, 5, 5]}
    came = stacks.blurred(**sizes)
    found = stacks.restored(name="deconv, Richardson–Lucy", n_most=40, **sizes)
    assert found["inside_db"] > came["inside_db"] + 1
    assert found["planes_db"] > came["planes_db"] + 1
    measured = stacks.fifty(name="deconv, Richardson–Lucy", n_iterations=3, **sizes)
    assert measured["n_iterations"] == 3
    assert 0 < measured["plane_error"] < 1


def test_a_workload_is_split_into_what_it_does():
    figures = measuring.measure(Case("tiny", speed.run_one, {"name": "unknown-512", "is_quick": True}))
    assert figures["n_transforms"] > 0
    assert 0 < figures["fft_s"] + figures["products_s"] + figures["other_s"] <= figures["charged_s"]
