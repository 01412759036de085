"""Mistakes of training code are found on their lines, sound models are not accused, and a caller adds rules."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from gradient_cases import FIXTURES, check_case, checked, load_fixture, verdicts
from torch import nn

from deconv_cli.gradients.checker import collect_evidence
from deconv_cli.gradients.findings import Finding, Verdict
from deconv_cli.gradients.losses import projection
from deconv_cli.gradients.rules import GRADIENT_RULES, find_for_parameter
from deconv_cli.gradients.rules.detached import LEAVE_OUT, line_with_gradient
from deconv_cli.gradients.subject import Subject

catalogue = load_fixture("catalogue")
LINES = (FIXTURES / "catalogue.py").read_text(encoding="utf-8").splitlines()


def faults(report):
    return [*report.faults(), *(found for found in report.general if found.is_fault or found.verdict == "NOISY")]


def test_the_safe_branch_that_is_suggested_trains():
    """What is suggested for a branch that is not taken gives the same values, and gradients that are right."""
    middle = catalogue.BROKEN["branch_not_taken"]().model.middle

    def cured(h):
        taken = h > -2
        return torch.where(taken, h, torch.exp(torch.where(taken, 1.0, 1000 * h.abs())))

    h = torch.tanh(catalogue.x(5, 6))
    assert torch.equal(middle(h), cured(h))
    found = check_case(catalogue.Case(catalogue.Middle(cured), catalogue.x(5, 4)))
    assert set(verdicts(found).values()) == {"OK"}


TOLD = {
    "detach": ("DETACHED", ".detach() cuts", "return h"),
    "data": ("DETACHED", ".data bypasses", "return h"),
    "no_grad": ("DETACHED", "switched off", "torch.no_grad()"),
    "argmax": ("DETACHED", "whole numbers", "torch.softmax"),
    "cast_to_int": ("DETACHED", "to int64", "floating-point"),
    "comparison": ("DETACHED", "the comparison >", "torch.minimum(x - low, high - x)"),
    "value_of_a_parameter": ("DETACHED", ".item() turns", "return self.head(given * self.scale)"),
    "made_of_a_tensor": ("DETACHED", "makes a new tensor", "return h"),
    "wrapped_as_parameter": ("DETACHED", "makes a new tensor", "use the tensor itself"),
    "loss_in_numpy": ("DETACHED", ".detach() cuts", "compute with torch functions"),
    "computed_and_dropped": ("NOT-LOSS", "does not reach the loss", ""),
    "rounded": ("ZERO", "constant between its steps", ""),
    "dead_relu": ("ZERO", "dead", "leaky_relu"),
    "saturated_softmax": ("ZERO", "saturated", ""),
    "square_root_of_zero": ("NON-FINITE", "enters sqrt and leaves it as NaN", "1e-12"),
    "division_by_zero": ("NON-FINITE", "div is the first operation that gives NaN", "divide by"),
    "in_place_on_what_is_needed": ("IN-PLACE", "of shape (5, 6)", "h = h + 1"),
    "softmax_over_the_batch": ("BATCH-LEAK", "mixes the samples", "dim=-1"),
    "WithoutIncoming": ("WRONG", "is not linear in the incoming gradient", ""),
    "MeanForSum": ("WRONG", "the mean over 5 samples", ""),
    "Clipped": ("WRONG", "is not linear in the incoming gradient", ""),
    "WritesIntoSaved": ("WRONG", "overwrites its input tensors", ""),
    "WritesIntoIncoming": ("WRONG", "overwrites the incoming gradient", ""),
    "LostBetweenSteps": ("WRONG", "elements of the gradient for 'w' are wrong", ""),
    "NothingForWeight": ("DETACHED", "returns None", ""),
    "sampled": ("DETACHED", "", "draw with .rsample()"),
    "checkpoint_without_gradients": ("DETACHED", "", "pass use_reentrant=False"),
    "branch_not_taken": ("NON-FINITE", "torch.where may not even select", "exp(torch.where(mask, x, 0.5))"),
    "both_factors_zero": ("ZERO", "other factor", "initialize one of the two with random values"),
    "softmax_of_one": ("ZERO", "has a single class", "use sigmoid"),
    "plain_list": ("UNREGISTERED", "self.layers is a plain Python container", ""),
    "plain_tensor": ("UNREGISTERED", "self.scale is a tensor that requires a gradient but no nn.Parameter", ""),
    "layer_made_in_forward": ("UNREGISTERED", "forward creates in each pass", ""),
    "all_frozen": ("NOTHING TRAINS", "all 2 parameters", ""),
    "softmax_twice": ("LOSS INPUT", "computes probabilities itself", ""),
    "scores_for_logarithms": ("LOSS INPUT", "needs logarithms", ""),
    "column_against_row": ("LOSS INPUT", "shapes (6, 1) and (6,) broadcast", ""),
    "one_class": ("LOSS INPUT", "only one class", ""),
    "classes_by_view": ("LOSS INPUT", "scores of several places become the classes of one", ""),
    "zeros_and_ones_for_signs": ("LOSS INPUT", "needs targets of -1 and 1", ""),
}
"""Verdicts of mistakes, with a part of the reason and of the suggestion."""
QUICK = {*TOLD, "learned_window", "drawn_with_a_gradient"} - {"rounded", "division_by_zero", "Clipped", "all_frozen"}


def marked(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive) for name in names]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", marked(catalogue.BROKEN))
def test_a_mistake_is_found_on_its_line(name):
    found = faults(check_case(catalogue.BROKEN[name]()))
    verdict, why, instead = TOLD.get(name, ("", "", ""))
    told = [cause for fault in found if fault.verdict == (verdict or fault.verdict) for cause in fault.causes]
    assert any(why in cause.why and instead in cause.suggestion for cause in told), found
    marks = {n for n, line in enumerate(LINES, start=1) if line.endswith(f"# {name}")}
    # What is drawn by NumPy has no line that torch could see.
    assert not marks or marks & {cause.location.line for cause in told} or name == "noise_without_a_seed", found


@pytest.mark.parametrize("name", marked(catalogue.SOUND))
def test_a_sound_model_is_not_accused(name):
    found = check_case(catalogue.SOUND[name]())
    assert faults(found) == []
    assert "NOT CHECKED" not in verdicts(found).values()


@pytest.mark.parametrize(
    "source",
    [
        *("y = x.detach()", "y = x.data", "y = 2 * x.data + 1", "y = x[0].item()", "y = float(x[0])", "y = x.tolist()"),
        *("y = x + torch.sin(3 * x).detach()", "y = torch.as_tensor([v.item() for v in x])"),
        *("y = Variable(x * 2, requires_grad=True)", "y = torch.tensor(float(x[0]), requires_grad=True)"),
        *("y = Variable(x.data, requires_grad=True)", "y = x.detach_()"),
    ],
)
def test_a_suggested_line_runs_and_trains(source):
    x = torch.randn(3, requires_grad=True)
    space = {"x": x, "torch": torch}
    line = line_with_gradient(source)
    exec(line, space)
    value = torch.stack(space["y"]) if isinstance(space["y"], list) else space["y"]
    assert torch.autograd.grad(value.sum(), x)[0].any()


@pytest.mark.parametrize(
    "source",
    [
        *("y = x.detach().numpy()", "y = x.detach() + z.detach()", "for v in x.tolist():", "h.data,"),
        "if on: h.data.clamp_(min=0)",
    ],
)
def test_no_line_is_suggested_that_may_fail(source):
    assert line_with_gradient(source) is None


@pytest.mark.parametrize(
    "source",
    [
        *("h = h.detach()", "self.h = self.h.data", "h.detach_()", "loss = Variable(loss.data, requires_grad=True)"),
        "loss = torch.tensor(loss.item(), requires_grad=True)",
    ],
)
def test_a_line_that_only_detaches_is_left_out(source):
    assert line_with_gradient(source) == LEAVE_OUT


detached, dying = load_fixture("detached"), load_fixture("dying")


def evidence_of(model, *shape, loss=projection):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    subject = Subject(model, (inputs,), {}, None, loss)
    return collect_evidence(subject, ExitStack(), 60.0, lambda _: None)


@pytest.fixture
def add_rule():
    added = []

    def register(name, rule):
        added.append(name)
        return GRADIENT_RULES.register(name, rule)

    yield register
    for name in added:
        GRADIENT_RULES.unregister(name)


class TestOwnRules:
    def test_it_is_asked_before_the_built_in_ones_and_a_word_of_its_own_is_a_fault(self, add_rule):
        add_rule("large", lambda evidence, name: Finding("TOO-LARGE") if name == "spare.weight" else None)
        found = checked(detached.Unused(), 5, 4)
        assert {name: word for name, word in verdicts(found).items() if word != "OK"} == {
            "spare.weight": "TOO-LARGE",
            "spare.bias": "UNUSED",
        }
        assert {fault.verdict for fault in found.faults()} == {"TOO-LARGE", "UNUSED"}
        assert GRADIENT_RULES.names[0] == "large"

    def test_what_is_no_fault_says_why_where_numbers_differ(self, add_rule):
        add_rule("excused", lambda evidence, name: Finding(Verdict.OK))
        found = verdicts(checked(detached.PartDetach(), 5, 4))
        assert (found["body.weight"], found["head.weight"]) == ("DETACHED", "OK")


class TestPrecedence:
    def test_the_last_rule_finds_anything(self):
        assert GRADIENT_RULES.names[-1] == "compared"

    def test_a_loss_of_nan_is_no_zero_gradient(self):
        """Both rules find something; the one that is named first decides."""
        evidence = evidence_of(nn.Linear(4, 2), 5, 4, loss=lambda output, _: (output - 1e6).log().clamp(0, 1).mean())
        zero, non_finite = (GRADIENT_RULES[name](evidence, "weight") for name in ("zero", "non-finite"))
        assert (zero.verdict, non_finite.verdict) == ("ZERO", "NON-FINITE")
        assert find_for_parameter(evidence, "weight") == non_finite
