"""Training scripts as people write them: sound ones are not accused nor changed, and a mistake is found on its line."""

from __future__ import annotations

import re
import runpy

import pytest
import torch
from gradient_cases import load_fixture, run_text

import deconv_cli
from deconv_cli.commands.check_grad import conclude
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.errors import UsageError

catalogue = load_fixture("script_catalogue")
QUICK_SOUND = (
    *("adversarial", "by_hand", "mixed_precision", "policy", "progressive", "word_language_model"),
    *("hand_lstm", "tangent_convolution"),
)
QUICK_FAULTS = (
    *("loss_wrapped_in_the_loop", "hidden_by_numpy", "vae_by_sample", "inner_step_on_data"),
    *("fisher_of_a_variable", "fisher_after_clearing", "lstm_input_for_cell", "tangent_square_missing"),
    *("counted_in_a_range_never_met", "fisher_before_backward"),
)
ELSEWHERE = {"tangent_last_tap_left_out"}
"""Faults that are found on another line: the head of a loop is at fault, and a line inside the loop is blamed."""


def marked(names, quick):
    return [pytest.param(name, marks=() if name in quick else pytest.mark.exhaustive) for name in names]


def found_in(report):
    """List the verdicts of the faults, and their causes."""
    faults = [*report.faults(), *(finding for finding in report.general if finding.is_fault)]
    return {str(fault.verdict) for fault in faults}, [cause for fault in faults for cause in fault.causes]


def test_few_mistakes_are_found_on_another_line():
    assert len(ELSEWHERE) <= 0.05 * len(catalogue.FAULTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", marked(catalogue.SOUND, QUICK_SOUND))
def test_a_sound_script_is_not_accused(name, tmp_path):
    report = run_text(catalogue.SOUND[name], tmp_path)
    assert found_in(report) == (set(), [])
    assert str(report).startswith("Training can work")
    assert conclude(report, [])[2] is ExitCode.SUCCESS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", marked([name for name in catalogue.SOUND if name not in ("policy", "q_learning")], ("adversarial",))
)
def test_watching_changes_nothing(name, tmp_path):
    """The loss of the last turn is the same to the bit, and random numbers go on as they would have."""
    path = tmp_path / "train.py"
    path.write_text(catalogue.SOUND[name], encoding="utf-8")
    plain, next_number = runpy.run_path(str(path), run_name="__main__")["loss"], torch.rand(1)
    with deconv_cli.watch_gradients():
        watched = runpy.run_path(str(path), run_name="__main__")["loss"]
    assert torch.equal(plain, watched)
    assert torch.equal(next_number, torch.rand(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", marked(catalogue.FAULTS, QUICK_FAULTS))
def test_a_mistake_is_found_on_its_line(name, tmp_path):
    fault = catalogue.FAULTS[name]
    blamed = {n for n, line in enumerate(fault.text.splitlines(), 1) if line.endswith("# blame")}
    if fault.verdict == "REFUSED":
        with pytest.raises(UsageError, match=f":{min(blamed)} .*{re.escape(fault.words)}"):
            run_text(fault.text, tmp_path)
        return
    report = run_text(fault.text, tmp_path)
    verdicts, causes = found_in(report)
    assert conclude(report, [])[2] is ExitCode.FAULT_FOUND
    assert fault.verdict in verdicts
    assert any(fault.words in cause.why for cause in causes)
    assert any(fault.remedy in cause.suggestion for cause in causes)
    lines = {cause.location.line for cause in causes}
    # What nothing reads has no line where it is read, and is named by its module.
    assert (lines == {None}) if fault.verdict == "UNUSED" else (lines <= blamed or name in ELSEWHERE)
