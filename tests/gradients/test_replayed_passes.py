"""Training scripts whose passes are hard to run again: what older weights gave, points of a penalty, lazy layers."""

import pytest
from gradient_cases import HEAD, LOOP, OPTIMIZER, run_text

from deconv_cli.errors import UsageError

OLD = "old = [p.detach().clone() for p in model.parameters()]\nwith torch.no_grad():\n    before = model(x)\n"
PULL = "sum((p - q).square().sum() for p, q in zip(model.parameters(), old))"
PENALTY = """    made = model(x)
    points = (0.5 * y + 0.5 * made.detach()).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    loss = nn.functional.mse_loss(made, y) + (slopes.norm(dim=1) - 1).square().mean()
"""
LAZY = "model = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(2))\nmodel(x)\n"
ORTHOGONAL = "nn.utils.parametrizations.orthogonal(model.body)\nmodel(x)\n"
WRAPPED = """class Wrapper(torch.optim.Optimizer):
    def __init__(self, inner):
        self.inner, self.param_groups = inner, inner.param_groups
    def zero_grad(self):
        self.inner.zero_grad()
    def step(self):
        self.inner.step()
optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
"""
TRAINED_ON = LOOP.replace(
    "mse_loss(model(x), y)", f"mse_loss(model(x), y) + (model(x) - before).square().mean() + {PULL}"
)
SOUND = {
    "pulled to old weights": HEAD + OPTIMIZER + LOOP + OLD + TRAINED_ON,
    "points of a penalty": HEAD
    + "critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))\n"
    + OPTIMIZER.replace("model.parameters()", "[*model.parameters(), *critic[0:1].parameters(), critic[2].weight]")
    + LOOP.replace("    loss = nn.functional.mse_loss(model(x), y)\n", PENALTY),
    "lazy layers": HEAD + LAZY + OPTIMIZER + LOOP,
    "orthogonal weights": HEAD.replace("6", "4") + ORTHOGONAL + OPTIMIZER + LOOP,
    "an optimizer in another one": HEAD
    + WRAPPED
    + LOOP.replace("range(3)", "range(10)")
    + "raise RuntimeError('not ended before')\n",
}
STEPS = {"pulled to old weights": 6}


@pytest.mark.parametrize("name", SOUND)
def test_a_pass_is_run_again_as_it_was(name, tmp_path):
    found = run_text(SOUND[name], tmp_path, step=STEPS.get(name, 1))
    assert not [finding for finding in (*found.parameters, *found.general) if finding.is_fault or finding.is_undecided]


def test_a_pass_that_cannot_be_recorded(tmp_path):
    text = HEAD + "model = torch.jit.script(nn.Linear(4, 2))\n" + OPTIMIZER + LOOP
    with pytest.raises(UsageError, match=r"torch\.jit"), pytest.warns(DeprecationWarning, match="torch.jit"):
        run_text(text, tmp_path)
