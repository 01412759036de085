"""Mistakes of real training code are found on their lines, and sound models that resemble them are not accused."""

from __future__ import annotations

import pytest
from gradient_cases import FIXTURES, load_fixture, verdicts

import deconv_cli

catalogue = load_fixture("catalogue")
LINES = (FIXTURES / "catalogue.py").read_text(encoding="utf-8").splitlines()
MISTAKES = {
    "WithoutIncoming": "does not depend on the incoming gradient",
    "Negative": "has the wrong sign",
    "MeanForSum": "the mean over 5 samples",
    "Clipped": "is not linear in the incoming gradient",
    "Swapped": "belongs to another input",
    "Transposed": "is transposed",
    "WritesIntoSaved": "writes to the tensors that it reads",
    "NothingForWeight": "returns None",
}
QUICK = {"no_grad", "branch_not_taken", "both_factors_zero", "loss_in_numpy", "softmax_twice", "drawn_with_a_gradient"}


def marked(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive) for name in names]


def check(case):
    return deconv_cli.check_gradients(case.model, case.inputs, loss=case.loss, target=case.target, budget=10.0)


def faults(report):
    return [*report.faults(), *(found for found in report.general if found.is_fault or found.verdict == "NOISY")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", marked(catalogue.BROKEN))
def test_a_mistake_is_found_on_its_line(name):
    found = faults(check(catalogue.BROKEN[name]()))
    assert found
    marks = {n for n, line in enumerate(LINES, start=1) if line.endswith(f"# {name}")}
    lines = {cause.location.line for fault in found for cause in fault.causes}
    # What is drawn by NumPy has no line that torch could see.
    assert not marks or marks & lines or name == "noise_without_a_seed", found


@pytest.mark.parametrize("name", marked(catalogue.SOUND))
def test_a_sound_model_is_not_accused(name):
    found = check(catalogue.SOUND[name]())
    assert faults(found) == []
    assert "NOT CHECKED" not in verdicts(found).values()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_a_backward_are_told_apart(name):
    (fault,) = check(catalogue.BROKEN[name]()).faults()
    assert MISTAKES[name] in fault.causes[0].why
    assert fault.causes[0].location.source.endswith(f"# {name}")
