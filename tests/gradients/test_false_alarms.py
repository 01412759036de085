"""Sound networks that are easily accused: what is zero at the start, detached on purpose, or not used by a batch."""

from __future__ import annotations

import importlib

import pytest
import torch
from gradient_cases import blamed_line, causes, checked, load_fixture, verdicts
from torch import nn

import deconv_cli

sound, detached = load_fixture("sound_practice"), load_fixture("detached")

AT_START = {
    "rezero": (sound.ReZero, (5, 6), "ZERO AT START"),
    "low rank": (sound.LowRank, (5, 6), "ZERO AT START"),
    "zero head": (sound.ZeroHead, (5, 6), "ZERO AT START"),
    "layer scale": (lambda: sound.ReZero(1e-7), (5, 6), "VANISHING AT START"),
}
ON_PURPOSE = ["Siamese", "StraightThrough", "Quantized"]
LINES_ON_PURPOSE = {"Siamese": "siamese", "StraightThrough": "straight"}
SOUND = ["HardGumbel", *ON_PURPOSE]


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
    assert name != "rezero" or finding.causes[0].location.line == blamed_line("sound_practice", "factor")


@pytest.mark.parametrize("name", SOUND)
def test_what_is_held_constant_on_purpose_makes_no_difference(name):
    model = getattr(sound, name)()
    found = checked(model, 5, 6)
    assert set(verdicts(found).values()) == {"OK"}, found.parameters
    assert {str(finding.verdict) for finding in found.general} == ({"PARTLY DETACHED"} if name in ON_PURPOSE else set())
    assert found.not_checked == () or "leak" in found.not_checked[0]
    if name in LINES_ON_PURPOSE:
        cause = found.general[0].causes[0]
        assert cause.location.line == blamed_line("sound_practice", LINES_ON_PURPOSE[name])
        assert "hold the values there constant" in cause.why
        assert str(found).count(cause.why) == 1  # for both lines of one network


def test_a_wrong_gradient_is_found_behind_a_detachment():
    """What is held constant hides nothing: the other way to the loss is compared as ever."""

    class Net(sound.StraightThrough):
        def forward(self, x):
            h = self.body(x)
            h.register_hook(lambda grad: 3 * grad)
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


@pytest.mark.parametrize(
    ("choose", "verdict"),
    [
        (lambda boxes, x: boxes[x[:, 0] > 9], "NOT REACHED"),
        (lambda boxes, x: torch.stack([x[:, :4], boxes]).gather(0, 0 * x[None, :, :4].long()), "NOT REACHED"),
        (lambda boxes, x: torch.stack([x[:, :4], boxes])[0], "ZERO"),
    ],
)
def test_a_head_that_the_data_leave_out_is_no_fault_and_one_that_the_code_leaves_out_is(choose, verdict):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores, self.boxes = nn.Linear(6, 2), nn.Linear(6, 4)

        def forward(self, x):
            return self.scores(x).square().mean() + (choose(self.boxes(x), x) - 1).square().sum()

    assert verdicts(checked(Net(), 5, 6)) == dict.fromkeys(("scores.weight", "scores.bias"), "OK") | dict.fromkeys(
        ("boxes.weight", "boxes.bias"), verdict
    )


NETWORKS = load_fixture("architectures").NETWORKS
QUICK = ("GraphConvolution", "ImagesAndTexts", "Equilibrium", "Capsules")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive) for name in NETWORKS]
)
def test_networks_of_many_kinds_are_not_accused(name):
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    found = deconv_cli.check_gradients(model, *inputs)
    assert faultless(found), (found.faults(), found.general)
    # Values that are held constant hide the noise of a solver that stops by a tolerance.
    assert "NOT CHECKED" not in verdicts(found).values() or name == "Equilibrium"


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
    [(Switched, "torch.set_grad_enabled(True) after line"), (Decorated, "remove the decorator torch.no_grad()")],
)
def test_gradients_are_switched_on_where_they_were_switched_off(model, suggestion):
    found = checked(model(), 5, 4)
    assert verdicts(found)["body.weight"] == "DETACHED"
    assert suggestion in causes(found, "body.weight")[0].suggestion


LIBRARY = """import torch
from torch import nn

def rounded(h):
    return h.round()

class Rounded(nn.Module):
    def forward(self, h):
        return h.round()
"""


def test_lines_that_call_a_library(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "rounding.py").write_text(LIBRARY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    library = importlib.import_module("rounding")

    class Net(nn.Module):
        def __init__(self, step):
            super().__init__()
            self.body, self.step = nn.Linear(6, 3), step

        def forward(self, x):
            return self.step(self.body(x))

    (of_function,) = causes(checked(Net(library.rounded), 5, 6), "body.weight")
    assert of_function.location.source == "return self.step(self.body(x))"
    model = Net(library.Rounded())
    model.step.spare = nn.Linear(2, 2)
    found = checked(model, 5, 6)
    (of_module,) = causes(found, "body.weight")
    spare = next(finding for finding in found.parameters if finding.name == "step.spare.bias")
    assert (spare.verdict, spare.is_fault) == ("UNUSED", False)
    assert (of_module.location.line, of_module.location.file) == (9, str(folder / "rounding.py"))


@pytest.mark.parametrize(("rounded", "verdict"), [(False, "OK"), (True, "ZERO")])
def test_a_minimum_is_no_fault_and_a_loss_of_steps_is_one(rounded, verdict):
    model, x = nn.Linear(3, 1, bias=False), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    target = model(x).detach()

    def loss(prediction, truth):
        return ((prediction.round() if rounded else prediction) - truth).square().mean()

    report = deconv_cli.check_gradients(model, x, loss=loss, target=target)
    assert [str(finding.verdict) for finding in report.parameters] == [verdict]
