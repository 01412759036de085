"""The verdict on every fixture: the word, the line, the operation, and what to write instead."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import blamed_line, causes, checked, load_fixture, verdicts
from torch import nn

detached, dying, wrong = map(load_fixture, ("detached", "dying", "wrong"))
lenet, range_loss = map(load_fixture, ("lenet", "range_loss"))

CLASSES, ZEROS = torch.arange(3), torch.zeros(16, 1)
PENALTY = "torch.where((x > low) & (x < high), torch.minimum(x - low, high - x), 0.0).mean()"


def digits(loss):
    return checked(lenet.LeNet5(), 3, 1, 32, 32, loss=getattr(lenet, loss), target=CLASSES)


def ranged(loss):
    return checked(range_loss.Regressor(), 16, 3, loss=getattr(range_loss, loss), target=ZEROS)


def small(model):
    return checked(model(), 5, 4)


def wide(model):
    return checked(model(), 4, 1000)


FAULTS = {
    ("lenet", "wrapped"): (digits, "wrapped_loss", "conv1.weight", "DETACHED", ["Variable(", "leave this line out"]),
    ("range_loss", "counted"): (ranged, "counted_loss", "hidden.weight", "DETACHED", ["comparison", PENALTY]),
    ("range_loss", "listed"): (ranged, "listed_loss", "hidden.weight", "DETACHED", [PENALTY, "value of the loss"]),
    ("detached", "part"): (small, detached.PartDetach, "body.weight", "DETACHED", ["one of several paths"]),
    ("dying", "unseeded"): (small, dying.Unseeded, "body.weight", "NOISY", ["the seed does not control"]),
    ("wrong", "doubled"): (wide, wrong.DoubledNet, "w", "WRONG", ["| divide the gradient for 'w' by 2 |"]),
    ("wrong", "one"): (wide, wrong.OneOffNet, "w", "WRONG", ["1 of 1000 elements", "[377]"]),
    ("wrong", "sum"): (wide, wrong.NoSumNet, "w", "WRONG", []),
}


def test_a_gradient_that_underflows_gets_advice_on_the_size_of_the_loss():
    inputs = torch.randn(16, 8).half()
    found = checked(nn.Linear(8, 1).half(), inputs=inputs, loss=lambda output: output.square().mean() * 1e-7)
    (finding,) = [finding for finding in found.parameters if finding.name == "weight"]
    assert "it underflows" in finding.detail
    assert finding.causes[0].suggestion.startswith("make the loss larger")


@pytest.mark.parametrize(("file", "mark"), FAULTS)
def test_the_line_the_reason_and_what_to_write(file, mark):
    check, given, parameter, verdict, words = FAULTS[file, mark]
    (finding,) = [finding for finding in check(given).parameters if finding.name == parameter]
    assert finding.verdict == verdict, finding
    (cause,) = finding.causes
    assert cause.location.file.endswith(f"{file}.py")
    assert cause.location.line == blamed_line(file, mark)
    assert cause.why.endswith(".")
    assert cause.suggestion
    told = f"{cause.operation} | {cause.why} | {cause.suggestion} | {finding.detail}"
    for part in words:
        assert part in told


@pytest.mark.parametrize("report", [lambda: digits("cured_loss"), lambda: ranged("piecewise_loss")])
def test_the_corrected_losses(report):
    assert set(verdicts(report()).values()) == {"OK"}


@pytest.mark.parametrize(
    ("report", "names"),
    [
        (lambda: small(detached.Unused), {"spare.weight": "UNUSED", "spare.bias": "UNUSED", "body.weight": "OK"}),
        (lambda: checked(dying.DeepSigmoid(), 5, 8), {"layers.0.weight": "VANISHING", "layers.13.weight": "OK"}),
        (lambda: checked(dying.DeepLinear(), 5, 8), {"first.weight": "EXPLODING", "last.weight": "OK"}),
        (lambda: checked(dying.Corner(), 3), {"bias": "NONDIFFERENTIABLE", "weight": "OK"}),
        (lambda: checked(detached.Base(), 5, 4, loss=detached.item_loss), {"body.weight": "DETACHED"}),
    ],
)
def test_each_parameter_has_its_own_verdict(report, names):
    found = verdicts(report())
    assert {name: found[name] for name in names} == names


@pytest.mark.parametrize("verdict", ["NOT-LOSS", "DETACHED"])
def test_a_parameter_that_is_only_logged_is_not_detached(verdict):
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.scale, self.log = nn.Parameter(torch.ones(())), []

        def forward(self, x):
            self.log.append(self.scale.item())
            return super().forward(x) * (1 if verdict == "NOT-LOSS" else self.log[-1])

    assert verdicts(small(Net)) == {"weight": "OK", "bias": "OK", "scale": verdict}


def test_parameters_behind_one_line_are_one_fault():
    (fault,) = digits("wrapped_loss").faults()
    assert (fault.verdict, len(fault.causes), len(fault.parameters)) == ("DETACHED", 1, 10)


def test_what_is_no_fault():
    model = detached.Base()
    model.body.requires_grad_(False)
    found = checked(model, 5, 4)
    assert verdicts(found)["body.weight"] == "FROZEN"
    normalized = checked(dying.BiasBeforeNorm(), 4, 2, 8, 8)
    assert {name for name, verdict in verdicts(normalized).items() if verdict == "ZERO BY CONSTRUCTION"} == {
        "conv.bias"
    }
    assert causes(normalized, "conv.bias")[0].location.module == "conv"
    assert found.faults() == normalized.faults() == checked(dying.Corner(), 3).faults() == []


def test_a_loss_that_is_not_finite_has_no_value():
    assert small(dying.LogOfNegative).loss is None


ill = load_fixture("not_healthy")
OF_FIVE = torch.tensor([0, 1, 2, 1, 0])


class WithEmpty(nn.Module):
    """Some layers have a width of 0, which is read or not."""

    def __init__(self):
        super().__init__()
        self.head, self.read, self.spare = nn.Linear(6, 2), nn.Linear(0, 2), nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        return self.head(x) + self.read(x[:, :0])


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_weights_without_elements_are_no_fault():
    found = checked(WithEmpty(), 5, 6)
    assert not any(finding.is_fault for finding in (*found.parameters, *found.general))
    assert {name for name, verdict in verdicts(found).items() if verdict == "OK"} == {
        "head.weight",
        "head.bias",
        "read.bias",
    }


def test_a_loss_may_have_weights_of_its_own():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, output):
            return (self.weight * output).square().mean()

    assert checked(nn.Linear(6, 3), 5, 6, loss=Weighted()).general == ()


@pytest.mark.parametrize(("model", "mark"), [(ill.Reset, "reset"), (ill.ResetInPlace, "copied")])
def test_parameters_that_forward_overwrites(model, mark):
    model = model()
    found = checked(model, 5, 6)
    assert verdicts(found) == {"scale": "OVERWRITTEN", "head.weight": "OK", "head.bias": "OK"}
    (cause,) = causes(found, "scale")
    assert cause.location.line == blamed_line("not_healthy", mark)
    assert "step is lost" in cause.why
    assert torch.equal(model.scale.data, torch.ones(6))


def test_a_projection_in_forward_is_sound():
    model = ill.Projected()
    assert verdicts(checked(model, 5, 6))["scale"] in ("OK", "NOT CHECKED")
    assert torch.equal(model.scale.data, torch.ones(6))


def test_losses_that_are_given_what_they_want():
    found = checked(nn.Linear(6, 3), 5, 6, loss=ill.sound_losses, target=OF_FIVE)
    assert {str(finding.verdict) for finding in found.general} <= {"PARTLY DETACHED"}
    assert set(verdicts(found).values()) == {"OK"}
