"""What is suggested was tried: the loss stays as it is, and the gradient comes; what does not help is not printed."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import causes, checked, verdicts
from torch import nn
from torch.distributions import Bernoulli, Categorical

from deconv_cli.gradients.replacements import SINGULAR, straight_through
from deconv_cli.gradients.training.script import check_script


class Net(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.layer, self.way = nn.Linear(4, 6), way

    def forward(self, x):
        return self.way(self.layer(x))


def suggestion(way):
    return causes(checked(Net(way), 5, 4), "layer.weight")[0].suggestion


AT = {"div": (torch.tensor(1.0), 0.0), "truediv": (torch.tensor(1.0), 0.0), "exp": (1000.0,), "pow": (0.0, 0.5)}
REGULAR = {"div": (torch.tensor(3.0), 0.7), "truediv": (torch.tensor(3.0), 0.7), "pow": (0.7, 0.5)}


def slope_of(bare, arguments):
    """Call a cure at a point, of several equal numbers where it is about all of them; returns value and slope."""
    moved = next(n for n, a in enumerate(arguments) if isinstance(a, float))
    x = torch.full((3,) if bare in ("norm", "vector_norm", "std") else (), arguments[moved], requires_grad=True)
    value = SINGULAR[bare].function(*arguments[:moved], x, *arguments[moved + 1 :])
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize("bare", SINGULAR)
def test_a_cure_has_a_finite_slope_where_there_was_none(bare):
    singular = {"acos": (1.0,), "asin": (1.0,)}
    value, slope = slope_of(bare, AT.get(bare) or singular.get(bare, (0.0,)))
    assert value.isfinite()
    assert slope.isfinite().all()


@pytest.mark.parametrize("bare", SINGULAR)
def test_a_cure_leaves_other_values_as_they_are(bare):
    value, _ = slope_of(bare, REGULAR.get(bare, (0.7,)))
    expected = {"norm": 0.7 * 3**0.5, "vector_norm": 0.7 * 3**0.5, "std": 0.0, "div": 3 / 0.7, "truediv": 3 / 0.7}
    expected |= {"pow": 0.7**0.5}
    wanted = expected[bare] if bare in expected else float(getattr(torch, bare)(torch.tensor(0.7)))
    assert float(value) == pytest.approx(wanted, abs=2e-6)


def test_a_straight_through_gradient_leaves_the_value():
    x = torch.tensor([0.3, 1.7], requires_grad=True)
    value = straight_through("round").function(x)
    assert torch.equal(value, x.round())
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.ones(2))


@pytest.mark.parametrize("distribution", [lambda h: Categorical(logits=h), lambda h: Bernoulli(logits=h)])
def test_a_draw_without_rsample(distribution):
    def way(h):
        return distribution(h).sample().to(h.dtype)

    assert "has no .rsample()" in suggestion(way)


def test_a_write_that_others_see():
    """A new tensor in its place would not change the rows of h."""

    def way(h):
        h = torch.exp(h)
        rows = h[:2]
        rows.mul_(2)
        return h

    assert suggestion(way).startswith("write to a copy")


def test_a_root_that_is_not_the_only_one():
    def way(h):
        h = torch.sqrt(h.relu() * 0)
        return torch.pow(h, 0.25)

    assert "was tried, and does not help alone" in suggestion(way)


SCRIPT = """import torch
from torch import nn
torch.manual_seed(0)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    h = model(torch.randn(8, 4))
    {line}
    optimizer.zero_grad()
    h.square().mean().requires_grad_().backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("line", "verdict", "words"),
    [
        ("h = 2 * h.detach()", "DETACHED", "h = 2 * h"),
        ("h = torch.arange(99.0)[(9 * h).abs().detach().long()]", "DETACHED", "was tried, and fails"),
        ("h = torch.floor(torch.round(9 * h))", "ZERO", "does not arrive either"),
        ("h = torch.round(9 * h)", "ZERO", "torch.round(x) - x).detach()"),
        ("h = torch.sqrt(h.relu() * 0)", "NON-FINITE", "torch.sqrt(x + 1e-12)"),
    ],
)
def test_in_a_script_too(line, verdict, words, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(line=line), encoding="utf-8")
    found = check_script(path)
    assert set(verdicts(found).values()) == {verdict}
    assert words in found.faults()[0].causes[0].suggestion
