"""Sound networks that are easily accused: what is zero at the start, detached on purpose, or not used by a batch."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from gradient_cases import blamed_line, causes, checked, load_fixture, verdicts
from torch import nn

import deconv_cli
from deconv_cli.gradients.tracing.code_location import is_installed, is_user_code

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
    assert "hold the value here constant" in found.general[0].causes[0].why


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


class Detector(nn.Module):
    """A head for each size of boxes, beside units that are dead; boxes that end before they begin are refused."""

    def __init__(self):
        super().__init__()
        self.body, self.side = nn.Linear(6, 6), nn.Linear(6, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))

    def forward(self, x, boxes):
        sizes = (boxes[:, 2:] - boxes[:, :2]).amin(1)
        if bool((sizes <= 0).any()):
            raise ValueError("boxes should end after they begin")
        h = self.body(x) + torch.relu(self.side(x) - 4)
        places = torch.stack([head(h) for head in self.heads])
        level = torch.bucketize(sizes, sizes.new_tensor([1.5, 2.5]))
        return nn.functional.smooth_l1_loss(places[level, torch.arange(len(x))], boxes)


def test_heads_that_no_box_of_this_batch_reaches():
    torch.manual_seed(0)
    x, begin = (torch.randn(5, n, generator=torch.Generator().manual_seed(n)) for n in (6, 2))
    model = Detector()
    found = verdicts(deconv_cli.check_gradients(model, x, torch.cat([begin, begin + 2], 1), batch_axis=None))
    assert {found[f"heads.{n}.weight"] for n in (0, 2)} == {"NOT REACHED"}
    assert (found["heads.1.weight"], found["side.weight"]) == ("OK", "ZERO")


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
    assert "NOT CHECKED" not in verdicts(found).values()


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


def test_a_library_beside_torch_is_not_taken_for_torch():
    """A line that calls a function of a library is named itself; inside a module of a library it is that one's."""
    file = f"{Path(torch.__file__).parent}vision/ops.py"
    assert is_user_code(file)
    assert is_installed(file)


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
    (of_module,) = causes(checked(Net(library.Rounded()), 5, 6), "body.weight")
    assert (of_module.location.line, of_module.location.file) == (9, str(folder / "rounding.py"))


@pytest.mark.parametrize(("rounded", "verdict"), [(False, "OK"), (True, "ZERO")])
def test_a_minimum_is_no_fault_and_a_loss_of_steps_is_one(rounded, verdict):
    model, x = nn.Linear(3, 1, bias=False), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    target = model(x).detach()

    def loss(prediction, truth):
        return ((prediction.round() if rounded else prediction) - truth).square().mean()

    report = deconv_cli.check_gradients(model, x, loss=loss, target=target)
    assert [str(finding.verdict) for finding in report.parameters] == [verdict]


def test_what_is_cut_off_behind_a_layer_is_said_to_be_cut_off():
    class Joined(nn.Module):
        """Joins the outputs of two layers, and returns only the first."""

        def __init__(self):
            super().__init__()
            self.kept, self.cut = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return torch.cat([self.kept(x), self.cut(x)], 1)[:, :3]

    found = checked(Joined(), 5, 4)
    assert verdicts(found)["cut.weight"] == "ZERO"
    assert "a slice, an index or a mask leaves it out" in causes(found, "cut.weight")[0].why
