"""Sound networks that are easily accused: what is zero at the start, detached on purpose, or not used by a batch."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import blamed_line, causes, checked, load_fixture, verdicts
from torch import nn

sound, detached = load_fixture("sound_practice"), load_fixture("detached")

AT_START = {
    "rezero": (sound.ReZero, (5, 6), "ZERO AT START"),
    "low rank": (sound.LowRank, (5, 6), "ZERO AT START"),
    "zero head": (sound.ZeroHead, (5, 6), "ZERO AT START"),
    "zero residual": (sound.ZeroResidual, (3, 2, 6, 6), "ZERO AT START"),
    "layer scale": (lambda: sound.ReZero(1e-7), (5, 6), "VANISHING AT START"),
}
ON_PURPOSE = ["Siamese", "StraightThrough", "Quantized"]
SOUND = ["Spectral", "Teacher", "HardGumbel", *ON_PURPOSE]


def faultless(report) -> bool:
    return not report.faults() and not any(finding.is_fault or finding.is_undecided for finding in report.general)


@pytest.mark.parametrize("name", AT_START)
def test_what_a_step_sets_free_is_no_fault(name):
    build, shape, verdict = AT_START[name]
    model = build()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = checked(model, *shape)
    assert faultless(found)
    assert verdict in verdicts(found).values()
    (finding, *_) = [f for f in found.parameters if f.verdict == verdict]
    assert "at the start only: after an optimizer step" in finding.detail
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_what_keeps_a_gradient_at_zero_at_the_start_is_named():
    (cause,) = causes(checked(sound.ReZero(), 5, 6), "layers.0.weight")
    assert cause.location.line == blamed_line("sound_practice", "factor")
    assert "other factor" in cause.why


def test_two_factors_of_zero_never_start():
    found = verdicts(checked(sound.LowRank(both_zero=True), 5, 6))
    assert (found["down"], found["up"]) == ("ZERO", "ZERO")


@pytest.mark.parametrize("name", SOUND)
def test_what_is_held_constant_on_purpose_makes_no_difference(name):
    model = getattr(sound, name)()
    found = checked(model, 5, 6)
    assert set(verdicts(found).values()) <= {"OK", "FROZEN"}, found.parameters
    assert {str(finding.verdict) for finding in found.general} == ({"PARTLY DETACHED"} if name in ON_PURPOSE else set())
    assert found.not_checked == () or "leak" in found.not_checked[0]


@pytest.mark.parametrize(("name", "mark"), [("Siamese", "siamese"), ("StraightThrough", "straight")])
def test_a_detachment_on_purpose_is_told_with_its_line(name, mark):
    found = checked(getattr(sound, name)(), 5, 6)
    assert found.general[0].causes[0].location.line == blamed_line("sound_practice", mark)
    assert "held constant" in found.general[0].causes[0].why


def test_a_wrong_gradient_is_found_behind_a_detachment():
    """What is held constant hides nothing: the other way to the loss is compared as ever."""

    class Net(sound.StraightThrough):
        def forward(self, x):
            h = self.body(x)
            h.register_hook(lambda grad: 2 * grad)
            return self.head(h + h.detach())

    assert verdicts(checked(Net(), 5, 6))["body.weight"] == "WRONG"


@pytest.mark.parametrize("name", ["Experts", "LayerDrop"])
def test_what_other_data_or_other_random_numbers_reach_is_no_fault(name):
    found = checked(getattr(sound, name)(), 3, 6)
    assert faultless(found)
    assert set(verdicts(found).values()) == {"OK", "NOT REACHED"}


def test_an_expert_that_nothing_is_ever_sent_to_stays_unused():
    model = sound.Experts(3)
    model.spare = nn.Linear(2, 2)
    found = verdicts(checked(model, 3, 6))
    assert (found["spare.weight"], found["spare.bias"]) == ("UNUSED", "UNUSED")


class Switched(detached.Base):
    def forward(self, x):
        torch.set_grad_enabled(False)
        h = self.body(x)
        torch.set_grad_enabled(True)
        return self.head(h)


class Decorated(detached.Base):
    def forward(self, x):
        return self.head(self.features(x))

    @torch.no_grad()
    def features(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("model", "suggestion"),
    [(Switched, "torch.set_grad_enabled(True) after line"), (Decorated, "take the decorator torch.no_grad() off")],
)
def test_gradients_are_switched_on_where_they_were_switched_off(model, suggestion):
    found = checked(model(), 5, 4)
    assert verdicts(found)["body.weight"] == "DETACHED"
    assert suggestion in causes(found, "body.weight")[0].suggestion
