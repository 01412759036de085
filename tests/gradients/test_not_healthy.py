"""What must never be called healthy: weights nobody trains, steps that are lost, losses fed with the wrong thing."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import blamed_line, causes, check_case, checked, load_fixture, verdicts
from torch import nn

catalogue, ill = load_fixture("catalogue"), load_fixture("not_healthy")
CLASSES = torch.tensor([0, 1, 2, 1, 0])


def general(report, verdict):
    return [finding for finding in report.general if finding.verdict == verdict]


def test_nothing_trains():
    (finding,) = general(check_case(catalogue.BROKEN["all_frozen"]()), "NOTHING TRAINS")
    assert finding.is_fault
    assert "all 2 parameters" in finding.causes[0].why


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
    found = checked(nn.Linear(6, 3), 5, 6, loss=ill.sound_losses, target=CLASSES)
    assert {str(finding.verdict) for finding in found.general} <= {"PARTLY DETACHED"}
    assert set(verdicts(found).values()) == {"OK"}
