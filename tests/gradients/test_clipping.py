"""Calls that limit gradients: where weights come later than others, and where gradients of several passes add up."""

import pytest
from gradient_cases import HEAD, LOOP, OPTIMIZER, changed, run_text

CLIP = "nn.utils.clip_grad_norm_({}.parameters(), 0.1)"
CLIPPED = {
    "a group that joins later": (
        changed(
            "    optimizer.step()\n",
            f"    {CLIP.format('model')}\n    {CLIP.format('late')}\n    optimizer.step()\n",
        )
        .replace("for _", "late = nn.Linear(4, 2)\nfor turn")
        .replace(
            "range(3):\n", "range(5):\n    if turn == 3:\n        optimizer.add_param_group(dict(params=late.weight))\n"
        )
        .replace("model(x), y", "model(x) + (late(x) if turn > 2 else 0), y")
    ),
    "a group that gets gradients later": (
        changed(
            "    optimizer.step()\n",
            "    for group in optimizer.param_groups:\n        nn.utils.clip_grad_norm_(group['params'], 1.0)\n"
            "    optimizer.step()\n",
            optimizer="late = nn.Linear(4, 2)\nparts = [dict(params=part.parameters()) for part in (model, late)]\n"
            "optimizer = torch.optim.SGD(parts, lr=0.1)\n",
        )
        .replace("for _", "for turn")
        .replace("model(x), y", "model(x) + (late(x) if turn > 2 else 0), y")
    ),
    "a body that is trained later, and limited alone": (
        changed(
            "    optimizer.step()\n",
            f"    {CLIP.format('model.body')}\n    optimizer.step()\n",
            optimizer=OPTIMIZER.replace("model.p", "model.head.p"),
        ).replace("model(x)", "model.head(model.body(x).detach())")
    ),
    "two networks, both before the steps": (
        changed("    optimizer.step()\n", f"    {CLIP.format('model')}\n    second.backward()\n    optimizer.step()\n")
        .replace("    optimizer.zero", "    other.zero_grad()\n    optimizer.zero")
        .replace("for _", "other = Net()\nof_other = torch.optim.SGD(other.parameters(), lr=0.1)\nfor _")
        .replace("    loss.back", "    second = nn.functional.mse_loss(other(x), y)\n    loss.back")
        + "    of_other.step()\n"
    ),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_weights_that_come_later_than_others(name, tmp_path):
    found = run_text(CLIPPED[name], tmp_path)
    assert not [finding for finding in found.general if finding.is_fault]


ADDED_UP = (HEAD + OPTIMIZER + LOOP).replace("range(3)", "range({turns})").replace("for _", "for turn")
ADDED_UP = ADDED_UP.replace("    optimizer.zero_grad()\n", "").replace(
    "    optimizer.step()\n",
    "    if turn % {n} == {n} - 1:\n        optimizer.step()\n        optimizer.zero_grad()\n",
)
LINES = {
    "in each turn": ("    if turn", "    CLIP\n    if turn", None),
    "before the step": ("        optimizer.step", "        CLIP\n        optimizer.step", None),
    "before backward": ("    loss.back", "    CLIP\n    loss.back", "later backward pass adds gradients"),
    "in the wrong turn": (
        "    if turn",
        "    if turn % {n} == 0:\n        CLIP\n    if turn",
        "later backward pass adds gradients",
    ),
    "after the step": (
        "optimizer.zero_grad()",
        "optimizer.zero_grad()\n    CLIP",
        "later backward pass adds gradients",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_gradients_that_add_up(name, tmp_path):
    old, new, why = LINES[name]
    text = ADDED_UP.replace(old, new.replace("CLIP", CLIP.format("model"))).format(n=4, turns=12)
    faults = [finding for finding in run_text(text, tmp_path).general if finding.is_fault]
    assert [finding.verdict for finding in faults] == ["CLIPPING"] * bool(why)
    assert all(why in finding.causes[0].why for finding in faults)
    assert all("clip_grad_norm_" in finding.causes[0].location.source for finding in faults)


def test_a_step_that_is_taken_after_many_passes(tmp_path):
    """The first step is waited for, and so is the second one, which tells whether gradients were cleared."""
    text = ADDED_UP.format(n=32, turns=100)
    assert str(run_text(text, tmp_path)).startswith("Training can work")
    found = run_text(text.replace("        optimizer.zero_grad()\n", ""), tmp_path)
    assert [finding.verdict for finding in found.general if finding.is_fault] == ["ACCUMULATED"]


def test_a_step_that_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("deconv_cli.gradients.training.training_watch._MAX_WAIT_S", 0.0)
    found = run_text(ADDED_UP.format(n=4, turns=12), tmp_path)
    assert not [finding for finding in found.general if finding.is_fault]
    assert "took no step in 1 call of backward" in found.not_checked[-1]
