"""The doctor's verdict on every specimen: the word, the line, the operation, and what to write instead."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import blamed_line, causes, examined, load_specimen, verdicts

cuts, dying, handwritten = (load_specimen(name) for name in ("cuts", "dying", "handwritten"))
lenet, mixing, range_loss = (load_specimen(name) for name in ("lenet", "mixing", "range_loss"))
tangent, wrong = (load_specimen(name) for name in ("tangent", "wrong"))


def assert_blamed(examination, parameter, specimen, mark, verdict):
    finding = next(f for f in examination.parameters if f.name == parameter)
    assert finding.verdict.value == verdict, finding
    (cause, *more) = finding.causes
    assert more == []
    assert cause.place.file.endswith(f"{specimen}.py")
    assert cause.place.line == blamed_line(specimen, mark)
    assert cause.why.endswith(".")
    assert cause.remedy
    return cause


class TestWrappedLosses:
    @pytest.mark.parametrize(
        ("loss", "mark", "operation"),
        [
            ("wrapped_loss", "wrapped", "Variable(...)"),
            ("wrapped_as_tensor", "tensor", "torch.tensor(...)"),
            ("wrapped_as_parameter", "parameter", "nn.Parameter(...)"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
    def test_a_loss_wrapped_again(self, loss, mark, operation):
        target = torch.randint(0, 10, (3,))
        found = examined(lenet.LeNet5(), 3, 1, 32, 32, loss=getattr(lenet, loss), target=target)
        assert set(verdicts(found).values()) == {"CUT"}
        cause = assert_blamed(found, "conv1.weight", "lenet", mark, "CUT")
        assert cause.operation == operation
        assert cause.remedy == "return loss"
        ((verdict, gathered, names),) = found.faults()
        assert (verdict.value, len(gathered), len(names)) == ("CUT", 1, 10)

    def test_the_cure(self):
        target = torch.randint(0, 10, (3,))
        found = examined(lenet.LeNet5(), 3, 1, 32, 32, loss=lenet.cured_loss, target=target)
        assert set(verdicts(found).values()) == {"OK"}


class TestRangeLosses:
    @pytest.mark.parametrize("error", [0.0, 100.0])
    @pytest.mark.parametrize("mark", ["counted", "listed"])
    def test_a_count_that_stands_still_on_these_data_is_cut_all_the_same(self, mark, error):
        model = range_loss.Regressor()
        with torch.no_grad():
            model.head.weight.mul_(1e-3)
            model.head.bias.zero_()
        found = examined(model, 16, 3, loss=getattr(range_loss, f"{mark}_loss"), target=torch.full((16, 1), error))
        assert_blamed(found, "hidden.weight", "range_loss", mark, "CUT")

    @pytest.mark.parametrize("mark", ["counted", "listed"])
    def test_a_loss_made_of_comparisons(self, mark):
        target = torch.zeros(16, 1)
        found = examined(range_loss.Regressor(), 16, 3, loss=getattr(range_loss, f"{mark}_loss"), target=target)
        assert set(verdicts(found).values()) == {"CUT"}
        cause = assert_blamed(found, "hidden.weight", "range_loss", mark, "CUT")
        assert "comparison" in cause.operation
        assert (
            cause.remedy
            == "torch.where((error > 0.2) & (error < 0.8), torch.minimum(error - 0.2, 0.8 - error), 0.0).mean()"
        )

    def test_the_piecewise_cure(self):
        found = examined(range_loss.Regressor(), 16, 3, loss=range_loss.piecewise_loss, target=torch.zeros(16, 1))
        assert set(verdicts(found).values()) == {"OK"}

    def test_the_remedy_is_the_cure(self):
        """What the doctor writes is code that trains: it equals the cure of the specimen."""
        target = torch.zeros(16, 1)
        found = examined(range_loss.Regressor(), 16, 3, loss=range_loss.counted_loss, target=target)
        error = torch.rand(20, requires_grad=True)
        loss = eval(causes(found, "head.weight")[0].remedy, {"torch": torch, "error": error})
        assert torch.equal(loss, range_loss.piecewise_loss(error, torch.zeros(20)))
        assert torch.autograd.grad(loss, error)[0].any()


class TestCuts:
    @pytest.mark.parametrize(
        ("name", "mark", "operation", "remedy"),
        [
            ("Detach", "detach", ".detach()", "return h"),
            ("SelectedThenDetached", "selected", ".detach()", "return selected"),
            ("Data", "data", ".data", "return h"),
            ("NoGrad", "no_grad", "no_grad", "torch.no_grad()"),
            ("Numpy", "numpy", ".detach()", "torch functions"),
            ("Argmax", "argmax", "argmax(...)", "torch.softmax"),
            ("IntegerCast", "cast", "the cast to int32", "floating point"),
            ("Comparison", "comparison", "the comparison >", "torch.where(h > 0"),
        ],
    )
    def test_an_operation_that_cuts(self, name, mark, operation, remedy):
        found = examined(getattr(cuts, name)(), 5, 4)
        assert verdicts(found) == {"body.weight": "CUT", "body.bias": "CUT", "head.weight": "OK", "head.bias": "OK"}
        cause = assert_blamed(found, "body.weight", "cuts", mark, "CUT")
        assert cause.operation == operation
        assert remedy.replace("where(h > 0", "where((h > 0)") in cause.remedy

    def test_item(self):
        found = examined(cuts.Item(), 5, 4)
        cause = assert_blamed(found, "scale", "cuts", "item", "CUT")
        assert cause.operation == ".item()"
        assert cause.remedy == "factor = self.scale"

    def test_a_loss_that_is_a_number(self):
        found = examined(cuts.Base(), 5, 4, loss=cuts.item_loss)
        assert set(verdicts(found).values()) == {"CUT"}
        assert assert_blamed(found, "body.weight", "cuts", "item_loss", "CUT").remedy == "return loss"

    def test_a_cut_on_one_of_two_ways(self):
        found = examined(cuts.PartDetach(), 5, 4)
        assert verdicts(found) == {"body.weight": "CUT", "body.bias": "CUT", "head.weight": "OK", "head.bias": "OK"}
        assert_blamed(found, "body.weight", "cuts", "part", "CUT")
        assert "one of several ways" in found.parameters[0].detail

    def test_unused(self):
        found = verdicts(examined(cuts.Unused(), 5, 4))
        assert {name for name, verdict in found.items() if verdict == "UNUSED"} == {"spare.weight", "spare.bias"}
        assert found["body.weight"] == "OK"

    def test_used_but_not_in_the_loss(self):
        found = examined(cuts.NotInLoss(), 5, 4)
        assert_blamed(found, "side.weight", "cuts", "aside", "NOT-LOSS")

    def test_frozen_is_no_fault(self):
        found = examined(cuts.Frozen(), 5, 4)
        assert verdicts(found)["body.weight"] == "FROZEN"
        assert found.faults() == []

    def test_a_backward_that_returns_none(self):
        found = examined(cuts.NoneForBias(), 5, 4)
        cause = assert_blamed(found, "bias", "cuts", "none_call", "CUT")
        assert "returns None" in cause.why


class TestDying:
    @pytest.mark.parametrize(
        ("name", "mark", "parameter", "words"),
        [
            ("Round", "round", "body.weight", "constant between its steps"),
            ("DeadRelu", "dead", "body.weight", "dead"),
            ("SaturatedSoftmax", "softmax", "body.weight", "saturated"),
        ],
    )
    def test_where_the_gradient_dies(self, name, mark, parameter, words):
        found = examined(getattr(dying, name)(), 5, 4)
        assert words in assert_blamed(found, parameter, "dying", mark, "ZERO").why

    def test_infinite_slope(self):
        found = examined(dying.SqrtAtZero(), 5, 4)
        cause = assert_blamed(found, "scale", "dying", "sqrt", "NON-FINITE")
        assert cause.operation == "sqrt(...)"
        assert "1e-12" in cause.remedy

    def test_a_loss_that_is_not_a_number(self):
        found = examined(dying.LogOfNegative(), 5, 4)
        cause = assert_blamed(found, "scale", "dying", "log", "NON-FINITE")
        assert "inputs of log are finite" in cause.why
        assert found.loss is None

    def test_a_bias_before_batch_norm(self):
        found = examined(dying.BiasBeforeNorm(), 4, 2, 8, 8)
        names = {name for name, verdict in verdicts(found).items() if verdict == "ZERO BY CONSTRUCTION"}
        assert names == {"conv.bias"}
        assert "BatchNorm" in causes(found, "conv.bias")[0].why
        assert found.faults() == []

    def test_vanishing(self):
        found = examined(dying.DeepSigmoid(), 5, 8)
        judged = verdicts(found)
        assert judged["layers.0.weight"] == "VANISHING"
        assert judged["layers.13.weight"] == "OK"
        assert causes(found, "layers.0.weight")[0].place.line is not None

    def test_exploding(self):
        found = examined(dying.DeepLinear(), 5, 8)
        assert verdicts(found)["first.weight"] == "EXPLODING"
        assert verdicts(found)["last.weight"] == "OK"

    def test_a_kink_is_no_fault(self):
        found = examined(dying.Corner(), 3)
        assert verdicts(found) == {"bias": "KINK", "weight": "OK"}
        assert found.faults() == []

    def test_random_numbers_that_no_seed_reaches(self):
        found = examined(dying.Unseeded(), 5, 4)
        assert set(verdicts(found).values()) == {"NOISY"}
        assert causes(found, "body.weight")[0].place.line == blamed_line("dying", "unseeded")
        assert "no seed reaches" in causes(found, "body.weight")[0].why


class TestHandwritten:
    @pytest.mark.parametrize(
        ("model", "shape"),
        [
            (handwritten.CharRnn, (3, 5, 7)),
            (handwritten.HandLstm, (3, 5, 4)),
            (tangent.TangentNet, (2, 1, 6, 6)),
        ],
        ids=["rnn", "lstm", "tangent"],
    )
    def test_right(self, model, shape):
        found = examined(model(), *shape)
        assert set(verdicts(found).values()) == {"OK"}, found.parameters
        assert found.general == []

    @pytest.mark.parametrize(
        ("model", "shape", "specimen", "mark", "parameter"),
        [
            (handwritten.WrongCharRnn, (3, 5, 7), "handwritten", "rnn", "wh"),
            (handwritten.WrongHandLstm, (3, 5, 4), "handwritten", "lstm", "w"),
            (tangent.WrongTangentNet, (2, 1, 6, 6), "tangent", "tangent", "w"),
        ],
        ids=["rnn", "lstm", "tangent"],
    )
    def test_wrong(self, model, shape, specimen, mark, parameter):
        found = examined(model(), *shape)
        assert_blamed(found, parameter, specimen, mark, "WRONG")
        assert verdicts(found).get("head.weight", "OK") == "OK"

    def test_the_wrong_gate_is_named(self):
        cause = causes(examined(handwritten.WrongHandLstm(), 3, 5, 4), "w")[0]
        assert "rows 10 to 14 (the whole fault lies in block 3 of 4)" in cause.why

    @pytest.mark.parametrize("scale", [1.0, 1e-6], ids=["plain", "tiny"])
    def test_twice_as_large_everywhere_under_a_mean(self, scale):
        found = examined(wrong.DoubledNet(scale=scale), 4, 1000)
        cause = assert_blamed(found, "w", "wrong", "doubled", "WRONG")
        assert cause.remedy == "divide the gradient for 'w' by 2"
        assert found.parameters[0].comparison.ratio == pytest.approx(2, rel=1e-4)

    def test_one_element_of_a_thousand_wrong_by_a_hundredth(self):
        found = examined(wrong.OneOffNet(), 4, 1000)
        cause = assert_blamed(found, "w", "wrong", "one", "WRONG")
        assert "1 of 1000 elements" in cause.why
        assert "[377]" in cause.why
        assert found.parameters[0].comparison.element == (377,)

    def test_a_missing_sum(self):
        assert_blamed(examined(wrong.NoSumNet(), 4, 1000), "w", "wrong", "sum", "WRONG")

    def test_a_hook(self):
        found = examined(wrong.hooked(), 5, 3)
        cause = assert_blamed(found, "weight", "wrong", "hook", "WRONG")
        assert cause.operation == "a gradient hook"
        assert verdicts(found)["bias"] == "OK"


class TestMixing:
    def test_samples_that_leak(self):
        found = examined(mixing.Leak(), 5, 4)
        (finding,) = found.general
        assert finding.verdict.value == "BATCH-LEAK"
        assert finding.causes[0].place.line == blamed_line("mixing", "leak")
        assert finding.causes[0].operation == "softmax(...)"

    def test_an_overwritten_tensor(self):
        found = examined(mixing.InPlace(), 5, 4)
        assert set(verdicts(found).values()) == {"IN-PLACE"}
        cause = assert_blamed(found, "body.weight", "mixing", "in_place", "IN-PLACE")
        assert cause.remedy == "h = h + 1"
