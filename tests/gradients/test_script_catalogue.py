"""Training scripts as people write them: sound ones are not accused nor changed, and a mistake is found on its line."""

from __future__ import annotations

import linecache
import re
import runpy
import sys
from types import ModuleType

import pytest
import torch
from gradient_cases import load_fixture, run_text

import deconv_cli
from deconv_cli.commands.check_grad import conclude
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.errors import UsageError

catalogue = load_fixture("script_catalogue")
RUN, MODEL = "run", "model"
QUICK_SOUND = ("dcgan", "word_language_model", "progressive", "hand_lstm", "tangent_convolution")
QUICK_FAULTS = (
    *("loss_wrapped_in_the_loop", "hidden_by_numpy", "vae_by_sample", "inner_step_on_data"),
    *("fisher_of_a_variable", "fisher_after_clearing", "lstm_input_for_cell", "tangent_square_missing"),
    *("counted_in_a_range_never_met", "fisher_before_backward"),
)
ELSEWHERE = {"tangent_last_tap_left_out"}
"""What is found on another line: the head of a loop is at fault, and a line inside of it is blamed."""


def marked(pairs, quick):
    return [pytest.param(*pair, marks=() if pair[0] in quick else pytest.mark.exhaustive) for pair in pairs]


SOUND = [(name, mode) for name in catalogue.SOUND for mode in (RUN, MODEL) if mode == RUN or catalogue.CASES[name]]
FAULTS = [
    (name, mode) for name, fault in catalogue.FAULTS.items() for mode in (RUN, MODEL) if mode == RUN or fault.is_model
]


def check(text, mode, case, tmp_path):
    """Check a script as it runs, or the model, the inputs, the loss and the target that it defines."""
    if mode == RUN:
        return run_text(text, tmp_path)
    path = tmp_path / "model.py"
    path.write_text(text, encoding="utf-8")
    linecache.checkcache()
    module = ModuleType(f"of_{tmp_path.name}")
    sys.modules[module.__name__] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    model, inputs, loss, target = eval(case, module.__dict__)
    return deconv_cli.check_gradients(model, inputs, loss=loss, target=target)


def found_in(report):
    """List the verdicts of the faults, and their causes."""
    faults = [*report.faults(), *(finding for finding in report.general if finding.is_fault)]
    return {str(fault.verdict) for fault in faults}, [cause for fault in faults for cause in fault.causes]


def test_few_mistakes_are_found_on_another_line():
    assert len([pair for pair in FAULTS if pair[0] in ELSEWHERE]) <= 0.05 * len(FAULTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "mode"), marked(SOUND, QUICK_SOUND))
def test_a_sound_script_is_not_accused(name, mode, tmp_path):
    report = check(catalogue.SOUND[name], mode, catalogue.CASES[name], tmp_path)
    assert found_in(report) == (set(), [])
    assert conclude(report, [])[2] is ExitCode.SUCCESS
    squares = [note for note in report.notes if "`deconv fisher`" in note]
    assert len(squares) == (name == "fisher_information" and mode == RUN)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "mode"), marked([pair for pair in SOUND if pair[1] == RUN], ("dcgan",)))
def test_watching_changes_nothing(name, mode, tmp_path):
    """The loss of the last turn is the same to the bit, and random numbers go on as they would have."""
    path = tmp_path / "train.py"
    path.write_text(catalogue.SOUND[name], encoding="utf-8")
    plain, next_number = runpy.run_path(str(path), run_name="__main__")["loss"], torch.rand(1)
    with deconv_cli.watch_gradients():
        watched = runpy.run_path(str(path), run_name="__main__")["loss"]
    assert torch.equal(plain, watched)
    assert torch.equal(next_number, torch.rand(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "mode"), marked(FAULTS, QUICK_FAULTS))
def test_a_mistake_is_found_on_its_line(name, mode, tmp_path):
    fault = catalogue.FAULTS[name]
    blamed = {n for n, line in enumerate(fault.text.splitlines(), 1) if line.endswith("# blame")}
    if fault.verdict == "REFUSED":
        with pytest.raises(UsageError, match=f":{min(blamed)} .*{re.escape(fault.words)}"):
            check(fault.text, mode, fault.case, tmp_path)
        return
    report = check(fault.text, mode, fault.case, tmp_path)
    verdicts, causes = found_in(report)
    assert conclude(report, [])[2] is ExitCode.FAULT_FOUND
    assert fault.verdict in verdicts
    assert any(fault.words in cause.why for cause in causes)
    assert any(fault.remedy in cause.suggestion for cause in causes)
    lines = {cause.location.line for cause in causes}
    # What nothing reads has no line where it is read, and is named by its module.
    assert (lines == {None}) if fault.verdict == "UNUSED" else (lines <= blamed or name in ELSEWHERE)
