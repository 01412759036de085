"""The verdict on every fixture: the word, the line, the operation, and what to write instead."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import blamed_line, causes, check_case, checked, load_fixture, verdicts

detached, dying = load_fixture("detached"), load_fixture("dying")
lenet, mixing, range_loss = (load_fixture(name) for name in ("lenet", "mixing", "range_loss"))
catalogue, wrong = load_fixture("catalogue"), load_fixture("wrong")

BODY_DETACHED = {"body.weight": "DETACHED", "body.bias": "DETACHED", "head.weight": "OK", "head.bias": "OK"}


def assert_blamed(report, parameter, fixture, mark, verdict):
    finding = next(f for f in report.parameters if f.name == parameter)
    assert finding.verdict == verdict, finding
    (cause, *more) = finding.causes
    assert more == []
    assert cause.location.file.endswith(f"{fixture}.py")
    assert cause.location.line == blamed_line(fixture, mark)
    assert cause.why.endswith(".")
    assert cause.suggestion
    return cause


class TestWrappedLosses:
    @pytest.mark.parametrize(
        ("loss", "mark", "operation", "suggestion"),
        [
            ("wrapped_loss", "wrapped", "Variable(...)", "leave this line out"),
            ("wrapped_as_tensor", "tensor", "torch.tensor(...)", "return loss"),
            ("wrapped_as_parameter", "parameter", "nn.Parameter(...)", "return loss"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
    def test_a_loss_wrapped_again(self, loss, mark, operation, suggestion):
        target = torch.randint(0, 10, (3,))
        found = checked(lenet.LeNet5(), 3, 1, 32, 32, loss=getattr(lenet, loss), target=target)
        assert set(verdicts(found).values()) == {"DETACHED"}
        cause = assert_blamed(found, "conv1.weight", "lenet", mark, "DETACHED")
        assert cause.operation == operation
        assert cause.suggestion == suggestion
        (fault,) = found.faults()
        assert (fault.verdict, len(fault.causes), len(fault.parameters)) == ("DETACHED", 1, 10)

    def test_the_corrected_loss(self):
        target = torch.randint(0, 10, (3,))
        found = checked(lenet.LeNet5(), 3, 1, 32, 32, loss=lenet.cured_loss, target=target)
        assert set(verdicts(found).values()) == {"OK"}


class TestRangeLosses:
    @pytest.mark.parametrize("mark", ["counted", "listed"])
    def test_a_loss_made_of_comparisons(self, mark):
        target = torch.zeros(16, 1)
        found = checked(range_loss.Regressor(), 16, 3, loss=getattr(range_loss, f"{mark}_loss"), target=target)
        assert set(verdicts(found).values()) == {"DETACHED"}
        cause = assert_blamed(found, "hidden.weight", "range_loss", mark, "DETACHED")
        assert "comparison" in cause.operation
        assert "torch.where((x > low) & (x < high), torch.minimum(x - low, high - x), 0.0).mean()" in cause.suggestion
        assert cause.suggestion.endswith("the value of the loss changes")

    def test_the_piecewise_loss(self):
        found = checked(range_loss.Regressor(), 16, 3, loss=range_loss.piecewise_loss, target=torch.zeros(16, 1))
        assert set(verdicts(found).values()) == {"OK"}


class TestDetached:
    @pytest.mark.parametrize(
        ("name", "operation", "suggestion"),
        [
            ("data", ".data", "return h"),
            ("no_grad", "no_grad", "torch.no_grad()"),
            ("argmax", "argmax(...)", "torch.softmax"),
            ("cast_to_int", "the cast to int64", "floating point"),
            ("comparison", "the comparison >", "torch.where((x > low)"),
        ],
    )
    def test_an_operation_that_detaches(self, name, operation, suggestion):
        found = check_case(catalogue.BROKEN[name]())
        assert verdicts(found) == BODY_DETACHED
        cause = assert_blamed(found, "body.weight", "catalogue", name, "DETACHED")
        assert cause.operation == operation
        assert suggestion in cause.suggestion

    @pytest.mark.parametrize(
        ("name", "mark", "line"), [("Detach", "detach", "h"), ("SelectedThenDetached", "selected", "selected")]
    )
    def test_a_line_without_its_detach(self, name, mark, line):
        found = checked(getattr(detached, name)(), 5, 4)
        assert verdicts(found) == BODY_DETACHED
        cause = assert_blamed(found, "body.weight", "detached", mark, "DETACHED")
        assert (cause.operation, cause.suggestion) == (".detach()", f"return {line}")

    def test_item(self):
        found = checked(detached.Item(), 5, 4)
        cause = assert_blamed(found, "scale", "detached", "item", "DETACHED")
        assert cause.operation == ".item()"
        assert cause.suggestion == "factor = self.scale"

    def test_a_loss_that_is_a_number(self):
        found = checked(detached.Base(), 5, 4, loss=detached.item_loss)
        assert set(verdicts(found).values()) == {"DETACHED"}
        assert assert_blamed(found, "body.weight", "detached", "item_loss", "DETACHED").suggestion == "return loss"

    def test_a_detachment_on_one_of_two_paths(self):
        found = checked(detached.PartDetach(), 5, 4)
        assert verdicts(found) == BODY_DETACHED
        assert_blamed(found, "body.weight", "detached", "part", "DETACHED")
        assert "one of several paths" in found.parameters[0].detail

    def test_unused(self):
        found = verdicts(checked(detached.Unused(), 5, 4))
        assert {name for name, verdict in found.items() if verdict == "UNUSED"} == {"spare.weight", "spare.bias"}
        assert found["body.weight"] == "OK"

    def test_frozen_is_no_fault(self):
        model = detached.Base()
        model.body.requires_grad_(False)
        found = checked(model, 5, 4)
        assert verdicts(found)["body.weight"] == "FROZEN"
        assert found.faults() == []


@pytest.mark.parametrize(
    ("model", "parameter", "mark", "verdict", "words"),
    [
        (detached.NotInLoss, "side.weight", "aside", "NOT-LOSS", "does not reach the loss"),
        (detached.NoneForBias, "bias", "none", "DETACHED", "returns None"),
        (dying.Round, "body.weight", "round", "ZERO", "constant between its steps"),
        (dying.DeadRelu, "body.weight", "dead", "ZERO", "dead"),
        (dying.SaturatedSoftmax, "body.weight", "softmax", "ZERO", "saturated"),
        (dying.SqrtAtZero, "scale", "sqrt", "NON-FINITE", "enters sqrt and leaves it as NaN or infinity"),
        (dying.LogOfNegative, "scale", "log", "NON-FINITE", "first arises in log"),
        (dying.Unseeded, "body.weight", "unseeded", "NOISY", "no seed reaches"),
        (mixing.InPlace, "body.weight", "in_place", "IN-PLACE", "overwrites a tensor of shape (5, 5)"),
    ],
)
def test_the_line_and_the_reason(model, parameter, mark, verdict, words):
    found = checked(model(), 5, 4)
    assert words in assert_blamed(found, parameter, model.__module__.removeprefix("fixture_"), mark, verdict).why


def test_suggestions():
    assert "1e-12" in causes(checked(dying.SqrtAtZero(), 5, 4), "scale")[0].suggestion
    assert causes(checked(mixing.InPlace(), 5, 4), "body.weight")[0].suggestion == "h = h + 1"
    assert checked(dying.LogOfNegative(), 5, 4).loss is None


class TestDying:
    def test_a_bias_before_batch_norm(self):
        found = checked(dying.BiasBeforeNorm(), 4, 2, 8, 8)
        names = {name for name, verdict in verdicts(found).items() if verdict == "ZERO BY CONSTRUCTION"}
        assert names == {"conv.bias"}
        assert "BatchNorm" in causes(found, "conv.bias")[0].why
        assert found.faults() == []

    def test_vanishing(self):
        found = checked(dying.DeepSigmoid(), 5, 8)
        judged = verdicts(found)
        assert judged["layers.0.weight"] == "VANISHING"
        assert judged["layers.13.weight"] == "OK"
        assert causes(found, "layers.0.weight")[0].location.line is not None

    def test_exploding(self):
        found = checked(dying.DeepLinear(), 5, 8)
        assert verdicts(found)["first.weight"] == "EXPLODING"
        assert verdicts(found)["last.weight"] == "OK"

    def test_a_kink_is_no_fault(self):
        found = checked(dying.Corner(), 3)
        assert verdicts(found) == {"bias": "NONDIFFERENTIABLE", "weight": "OK"}
        assert found.faults() == []


class TestHandwritten:
    @pytest.mark.parametrize("scale", [1.0, 1e-6], ids=["plain", "tiny"])
    def test_twice_as_large_everywhere_under_a_mean(self, scale):
        found = checked(wrong.DoubledNet(scale=scale), 4, 1000)
        cause = assert_blamed(found, "w", "wrong", "doubled", "WRONG")
        assert cause.suggestion == "divide the gradient for 'w' by 2"
        assert found.parameters[0].detail.endswith("by a factor of 2")
        assert found.parameters[0].comparison.ratio == pytest.approx(2, rel=1e-4)

    def test_one_element_of_a_thousand_wrong_by_a_hundredth(self):
        found = checked(wrong.OneOffNet(), 4, 1000)
        cause = assert_blamed(found, "w", "wrong", "one", "WRONG")
        assert "1 of 1000 elements" in cause.why
        assert "[377]" in cause.why
        assert found.parameters[0].comparison.element == (377,)

    def test_a_missing_sum(self):
        assert_blamed(checked(wrong.NoSumNet(), 4, 1000), "w", "wrong", "sum", "WRONG")

    def test_a_hook(self):
        found = checked(wrong.hooked(), 5, 3)
        cause = assert_blamed(found, "weight", "wrong", "hook", "WRONG")
        assert cause.operation == "a gradient hook"
        assert verdicts(found)["bias"] == "OK"


class TestMixing:
    def test_samples_that_leak(self):
        found = checked(mixing.Leak(), 5, 4)
        (finding,) = found.general
        assert finding.verdict == "BATCH-LEAK"
        assert finding.causes[0].location.line == blamed_line("mixing", "leak")
        assert finding.causes[0].operation == "softmax(...)"
