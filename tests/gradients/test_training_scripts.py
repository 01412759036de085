"""Training scripts as people write them: run as they are, found healthy, or with the line that spoils the training."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from gradient_cases import FIXTURES, HEAD, LOOP, OPTIMIZER, changed, run_text, verdicts
from torch import nn

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.gradients.training.script import check_script

PAGE = FIXTURES.parents[1] / "docs" / "howto" / "gradients.md"
SCRIPTS = FIXTURES / "scripts"


@pytest.mark.parametrize(
    ("more", "verdict", "reason"),
    [
        ("", "UNUSED", "no operation of forward reads this parameter; "),
        (
            "extra = self.side(x)",
            "NOT-LOSS",
            "forward uses this parameter here, but its value does not reach the loss; ",
        ),
        ("x = x + self.side(x).detach()", "DETACHED", ".detach() cuts"),
    ],
)
def test_a_layer_that_no_optimizer_holds_keeps_its_verdict_and_is_no_fault(tmp_path, more, verdict, reason):
    head = HEAD.replace("nn.Linear(6, 2)\n", "nn.Linear(6, 2)\n        self.side = nn.Linear(4, 4)\n")
    text = head.replace("        return", f"        {more}\n        return")
    optimizer = "optimizer = torch.optim.SGD([*model.body.parameters(), *model.head.parameters()], lr=0.1)\n"
    found = run_text(text + optimizer + LOOP, tmp_path)
    (finding,) = [finding for finding in found.parameters if finding.name == "side.weight"]
    assert (finding.verdict, finding.is_fault) == (verdict, False)
    why = finding.causes[0].why
    assert why.startswith(reason)
    assert why.endswith("; no optimizer holds this weight, so it is not trained, as in a target network.")


FILLS = {
    "a part": "    model.bank[4 * (_ % 2) : 4 * (_ % 2) + 4] = found.detach()[:4]\n",
    "all": "    model.bank.mul_(0.5).add_(0.5 * found.detach())\n",
    "an average": "    model.bank.lerp_(found.detach(), 0.1)\n",
    "with a gradient": "    model.bank[:4] = 0.5 * model.bank[:4] + 0.5 * found[:4]\n",
}
ENDS = {
    "nothing": "",
    "a number": "    loss.item()\n",
    "a detachment": "    model.bank = model.bank.detach()\n",
    "a detachment in place": "    model.bank.detach_()\n    loss.item()\n",
}
BANKS = [(*case, n) for case in (("a part", True), ("a part", False), ("all", True)) for n in ("nothing", "a number")]
BANKS = [(*bank, n_added) for bank in BANKS for n_added in (1, 2)]
BANKS += [("an average", is_before, "nothing", 1) for is_before in (True, False)]
BANKS += [("with a gradient", True, end, 1) for end in ("a detachment", "a detachment in place")]


@pytest.mark.parametrize(("fill", "is_before", "end", "n_added"), BANKS)
@pytest.mark.parametrize("kind", ["buffer", "tensor"])
def test_a_memory_bank_that_training_writes_in_place_is_no_fault(tmp_path, kind, fill, is_before, end, n_added):
    bank = (
        "model.register_buffer('bank', torch.randn(8, 2))\n" if kind == "buffer" else "model.bank = torch.randn(8, 2)\n"
    )
    before, after = (FILLS[fill], "") if is_before else ("", FILLS[fill])
    loop = LOOP.replace("range(3)", "range(8)").replace("    loss =", f"    found = model(x)\n{before}    loss =")
    loop = loop.replace("mse_loss(model(x), y)", "mse_loss(found @ model.bank.T, torch.ones(8, 8))")
    loop = loop.replace("    optimizer.zero", f"    _ % {n_added} or optimizer.zero")
    loop = loop.replace("    optimizer.step", f"    (_ + 1) % {n_added} or optimizer.step")
    found = run_text(HEAD + bank + OPTIMIZER + loop + after + ENDS[end], tmp_path, step=4)
    assert set(verdicts(found).values()) == {"OK"}
    assert not any(finding.is_fault for finding in found.general)


@pytest.mark.parametrize(("result", "n_unchecked"), [("tuple(0.1 * g for g in given)", 1), ("tuple(given)", 0)])
def test_a_hook_of_a_module_that_changes_gradients_is_named(tmp_path, result, n_unchecked):
    hook = f"def changing(module, given, arriving):\n    return {result}\n"
    found = run_text(HEAD + hook + "model.head.register_full_backward_hook(changing)\n" + OPTIMIZER + LOOP, tmp_path)
    assert len(found.not_checked) == n_unchecked
    assert all("train.py:12, which changes gradients" in sentence for sentence in found.not_checked)


def test_an_unused_layer_has_one_verdict_whoever_holds_it(tmp_path):
    head = HEAD.replace("nn.Linear(6, 2)\n", "nn.Linear(6, 2)\n        self.side = nn.Linear(4, 4)\n")
    parts = "[*model.body.parameters(), *model.head.parameters()]"
    waiting = OPTIMIZER.replace("model.parameters()", parts)
    waiting += "other = torch.optim.SGD(model.side.parameters(), lr=0.1)\n"
    for optimizer, is_fault in ((OPTIMIZER, True), (waiting, False)):
        finding = run_text(head + optimizer + LOOP, tmp_path).parameters[-1]
        assert (finding.name, finding.verdict, finding.is_fault) == ("side.bias", "UNUSED", is_fault)


def test_layers_of_a_model_that_the_script_never_calls_have_the_names_of_its_attributes(tmp_path):
    loop = LOOP.replace("model(x)", "model.head(torch.relu(model.body(x)))")
    assert loop != LOOP
    names = {name.rpartition(".")[0] for name in verdicts(run_text(HEAD + OPTIMIZER + loop, tmp_path))}
    assert names == {"body", "head"}


class TestSeveralLosses:
    """Two networks against each other, with three calls of backward and two optimizers in a turn."""

    SOURCE = (SCRIPTS / "adversarial.py").read_text(encoding="utf-8")

    def changed(self, tmp_path, *changes, **options):
        text = self.SOURCE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return run_text(text, tmp_path, **options)

    def test_each_weight_has_the_finding_of_its_own_loss(self):
        found = check_script(SCRIPTS / "adversarial.py")
        names = verdicts(found)
        assert names["discriminator.0.weight"] == names["generator.0.weight"] == "OK"
        assert names["generator.0.bias"] == "ZERO BY CONSTRUCTION"
        assert found.general == ()
        assert "the losses of 3 lines were checked" in found.notes[0]

    def test_a_detached_loss_of_the_generator_is_found_though_the_other_loss_reaches_it(self, tmp_path):
        changes = (
            ("fake.detach()", "fake"),
            ("(discriminator(fake).view(-1), torch.o", "(discriminator(new).view(-1), torch.o"),
        )
        step = "    loss = criterion("
        found = self.changed(tmp_path, *changes, (step, f"    new = generator(torch.randn(8, 4)).detach()\n{step}"))
        assert verdicts(found)["generator.0.weight"] == "DETACHED"

    def test_an_error_after_the_first_pass_is_a_fault(self, tmp_path):
        found = self.changed(tmp_path, ("fake.detach()", "fake"))
        (fault,) = [finding for finding in found.general if finding.is_fault]
        assert (fault.verdict, fault.causes[0].location.line) == ("FAILS", 22)
        assert "fake.detach()" in fault.causes[0].suggestion


def test_a_gradient_that_is_cleared_before_every_step_does_not_excuse_a_detached_loss(tmp_path):
    other = "    model.body(x).square().mean().backward()\n"
    text = changed("    optimizer.zero_grad()\n", f"{other}    optimizer.zero_grad()\n")
    found = verdicts(run_text(text.replace("(model(x)", "(model.head(model.body(x).detach())"), tmp_path))
    assert found == {"body.weight": "DETACHED", "body.bias": "DETACHED", "head.weight": "OK", "head.bias": "OK"}


BROKEN = {
    "another object": (HEAD + OPTIMIZER + "model = Net()  # blame\n" + LOOP, "OPTIMIZER", "of another object"),
    "a part": (
        changed("", "", optimizer="optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\n"),
        "OPTIMIZER",
        "holds body.weight, body.bias",
    ),
    "rate of zero": (
        changed("", "", optimizer="optimizer = torch.optim.SGD(model.parameters(), lr=0.0)\n"),
        "OPTIMIZER",
        "learning rate is 0",
    ),
    "bfloat16": (
        (HEAD + "model.bfloat16()\n" + OPTIMIZER + LOOP)
        .replace("lr=0.1", "lr=1e-9")
        .replace("torch.randn(8, 4), torch.randn(8, 2)", "torch.randn(8, 4).bfloat16(), torch.randn(8, 2).bfloat16()"),
        "OPTIMIZER",
        "what their precision can hold",
    ),
    "never": (changed("    optimizer.step()\n", ""), "OPTIMIZER", "made no step in 3 backward passes"),
    "not cleared": (changed("    optimizer.zero_grad()\n", ""), "ACCUMULATED", "of the previous step remain"),
    "cleared too late": (
        changed("    optimizer.zero_grad()\n", "").replace("    optimizer", "    optimizer.zero_grad()\n    optimizer"),
        "GRADIENT LOST",
        "cleared between",
    ),
    "clipped": (
        changed(
            "    optimizer.step", "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-7)\n    optimizer.step"
        ),
        "GRADIENT LOST",
        "next to nothing",
    ),
    "switched off for good": (
        changed("    optimizer.step()\n", "    optimizer.step()\n    torch.set_grad_enabled(False)\n"),
        "FAILS",
        "does not require grad",
    ),
}
REMEDIES = {"switched off for good": "torch.set_grad_enabled(True)"}


SLOW = ("a part", "clipped", "switched off for good")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name in SLOW else ()) for name in BROKEN]
)
def test_what_is_wrong_with_the_optimizer(name, tmp_path):
    text, verdict, words = BROKEN[name]
    found = run_text(text, tmp_path)
    assert set(verdicts(found).values()) == {"OK"}, found
    (finding,) = [finding for finding in found.general if finding.is_fault]
    assert finding.verdict == verdict
    assert words in finding.causes[0].why
    if name in ("another object", "a part"):
        assert finding.causes[0].location.source.startswith("optimizer = torch.optim.SGD(")
    assert REMEDIES.get(name, "") in finding.causes[0].suggestion
    is_slow = verdict == "ACCUMULATED"
    assert str(found).startswith("Training runs, but more slowly" if is_slow else "Training would not work")


def test_a_large_scale_of_mixed_precision_is_no_lost_gradient(tmp_path):
    text = (SCRIPTS / "mixed_precision.py").read_text(encoding="utf-8")
    found = run_text(text.replace('GradScaler("cpu")', 'GradScaler("cpu", init_scale=2.0**28)'), tmp_path)
    assert not [finding for finding in found.general if finding.is_fault], found


@pytest.mark.parametrize(("n_turns", "verdicts_found"), [(8, []), (22, ["OPTIMIZER"])])
def test_a_scaler_that_skips_its_first_steps_is_usual_and_one_that_skips_all_is_not(n_turns, verdicts_found, tmp_path):
    text = (SCRIPTS / "mixed_precision.py").read_text(encoding="utf-8").replace("range(8)", f"range({n_turns})")
    text = text.replace("        scaler.u", "        model[0].weight.grad.fill_(torch.inf)\n        scaler.u", 1)
    found = run_text(text, tmp_path)
    assert [finding.verdict for finding in found.general if finding.is_fault] == verdicts_found


@pytest.mark.parametrize("is_enabled", [True, False])
def test_an_optimizer_without_a_step_is_found_beside_a_gradient_scaler(is_enabled, tmp_path):
    optimizers = "".join(f"{part} = torch.optim.SGD(model.{part}.parameters(), lr=0.1)\n" for part in ("body", "head"))
    scaler = f'scaler = torch.amp.GradScaler("cpu", init_scale=2.0, enabled={is_enabled})\n'
    loop = LOOP.replace("optimizer.zero", "model.zero").replace("loss.back", "scaler.scale(loss).back")
    text = HEAD + optimizers + scaler + loop.replace("optimizer.step()", "scaler.step(body)\n    scaler.update()")
    (finding,) = run_text(text, tmp_path).general
    assert "holds head.weight" in finding.causes[0].why


MEMBERS = {
    "a list": ("[nn.Linear(6, 6)]", "self.hidden[0](h)", "nn.ModuleList"),
    "a tensor": ("torch.randn(6, 6, requires_grad=True)", "h @ self.hidden", "wrap it"),
    "a tensor that the optimizer holds": ("torch.ones(6, requires_grad=True)", "self.hidden * h", ""),
    "a tensor to differentiate by": (
        "torch.ones(8, 6, requires_grad=True)",
        "h + torch.autograd.grad((h.detach() * self.hidden.sin()).sum(), self.hidden, create_graph=True)[0]",
        "",
    ),
    "a view": ("nn.Parameter(torch.ones(6)).view(1, 6)", "self.hidden * h", "keep the Parameter itself"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_weight_that_is_not_registered(name, tmp_path):
    made, read, remedy = MEMBERS[name]
    optimizer = OPTIMIZER.replace("model.p", "[*model.p").replace(",", ", model.hidden],")
    text = HEAD.replace("6, 2)\n", f"6, 2)\n        self.hidden = {made}\n", 1)
    text = text.replace(
        "        return self", f"        h = torch.tanh(self.body(x))\n        h = {read}\n        return self"
    )
    text = text.replace("self.head(torch.tanh(self.body(x)))", "self.head(h)")
    text += (optimizer if "holds" in name else OPTIMIZER) + LOOP
    found = run_text(text, tmp_path)
    faults = [finding for finding in found.general if finding.is_fault]
    assert [finding.verdict for finding in faults] == ["UNREGISTERED"] * bool(remedy)
    assert all(remedy in finding.causes[0].suggestion for finding in faults)
    assert all((made if name == "a view" else read) in finding.causes[0].location.source for finding in faults)


ADDED_UP = (HEAD + OPTIMIZER + LOOP).replace("range(3)", "range({turns})").replace("for _", "for turn")
ADDED_UP = ADDED_UP.replace("    optimizer.zero_grad()\n", "").replace(
    "    optimizer.step()\n",
    "    if turn % {n} == {n} - 1:\n        optimizer.step()\n        optimizer.zero_grad()\n",
)


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
    assert "made no step in 1 call of backward" in found.not_checked[-1]


def test_the_script_has_its_arguments_and_they_are_put_back(tmp_path):
    before = list(sys.argv), list(sys.path)
    text = HEAD + OPTIMIZER + "import sys\nassert sys.argv[1:] == ['--fast'] and __name__ == '__main__'\n" + LOOP
    run_text(text, tmp_path, arguments=["--fast"])
    assert (sys.argv, sys.path) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 / 0\n", r"train.py:1 \(ZeroDivisionError"),
        ("print('no training')\n", r"never calls backward\(\)"),
        ("import sys\nsys.exit('no data')\n", "ended itself before the pass to check, by sys.exit: “no data”"),
        ("model = 1\nmodel = = 2\n", r"train.py:2 \(SyntaxError"),
    ],
)
def test_a_script_that_does_not_come_to_training(text, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        run_text(text, tmp_path)


class TestWatching:
    def test_the_lines_of_the_page(self, capsys):
        (code,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        model = nn.Linear(4, 2)
        names = {"deconv_cli": deconv_cli, "model": model, "criterion": nn.MSELoss()}
        names |= {"x": torch.ones(3, 4), "y": torch.ones(3, 2)}
        names["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
        exec(code, names)
        assert capsys.readouterr().out.startswith("Training can work")

    def test_memory_that_is_written_to(self):
        """A loop fills a tensor that was made before it."""
        model = nn.Linear(3, 3)
        with deconv_cli.watch_gradients() as watched:
            assert str(watched) == "nothing was checked yet"
            outputs = torch.zeros(4, 2, 3)
            h = torch.ones(2, 3)
            for t in range(4):
                h = torch.tanh(model(h))
                outputs[t] = h
            outputs.square().mean().backward()
        assert set(verdicts(watched.report).values()) == {"OK"}
        assert "Training can work" in repr(watched)

    def test_memory_that_is_written_to_unseen_after_it_was_read(self):
        """The loss does not depend on the write, but backward reads what it overwrites."""
        body, head = nn.Linear(3, 4), nn.Linear(4, 2)
        with deconv_cli.watch_gradients() as watched:
            h = torch.exp(body(torch.ones(5, 3)))
            loss = head(h).square().mean()
            h.data.mul_(0.5)  # blame
            loss.backward()
        found = verdicts(watched.report)
        assert {found["body.weight"], found["head.weight"], found["head.bias"]} == {"WRONG", "OK"}
        assert all(cause.location.source.endswith("# blame") for cause in watched.report.faults()[0].causes)

    def test_what_was_patched_is_put_back(self):
        before = torch.autograd.backward, torch.optim.Optimizer.zero_grad, nn.Module.zero_grad
        with pytest.raises(KeyError), deconv_cli.watch_gradients():
            raise KeyError("of the code")
        assert (torch.autograd.backward, torch.optim.Optimizer.zero_grad, nn.Module.zero_grad) == before
        assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)


class TestNotebooks:
    def test_cells_run_in_turn_and_name_their_lines(self, tmp_path):
        cells = [HEAD, "%matplotlib inline\n" + OPTIMIZER, LOOP.replace("model(x)", "model(x).detach()")]
        cells[2] = cells[2].replace("loss.backward()", "loss.requires_grad_().backward()")
        notebook = {"cells": [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]}
        notebook["cells"].insert(0, {"cell_type": "markdown", "source": ["# Training"]})
        path = tmp_path / "train.ipynb"
        path.write_text(json.dumps(notebook), encoding="utf-8")
        found = check_script(path)
        assert set(verdicts(found).values()) == {"DETACHED"}
        location = found.faults()[0].causes[0].location
        assert (location.file, location.line) == (f"{path} cell 3", 3)
        assert "model(x).detach()" in location.source

    def test_what_is_no_notebook(self, tmp_path):
        (tmp_path / "train.ipynb").write_text("print(1)", encoding="utf-8")
        with pytest.raises(UsageError, match="should be a notebook"):
            check_script(tmp_path / "train.ipynb")


OLD = "old = [p.detach().clone() for p in model.parameters()]\nwith torch.no_grad():\n    before = model(x)\n"
PULL = "sum((p - q).square().sum() for p, q in zip(model.parameters(), old))"
PENALTY = """    made = model(x)
    points = (0.5 * y + 0.5 * made.detach()).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    loss = nn.functional.mse_loss(made, y) + (slopes.norm(dim=1) - 1).square().mean()
"""
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
    "an optimizer in another one": HEAD
    + WRAPPED
    + LOOP.replace("range(3)", "range(10)")
    + "raise RuntimeError('not ended before')\n",
}
SOUND["a tensor written partly without gradients"] = (
    HEAD
    + OPTIMIZER
    + LOOP.replace(
        "    loss = ",
        "    made = torch.zeros(8, 2)\n    made[:5] = model(x[:5])\n"
        "    with torch.no_grad():\n        made[5:] = model(x[5:])\n    loss = ",
    ).replace("mse_loss(model(x)", "mse_loss(made")
)
STEPS = {"pulled to old weights": 6}


@pytest.mark.parametrize("name", SOUND)
def test_a_pass_is_run_again_as_it_was(name, tmp_path):
    found = run_text(SOUND[name], tmp_path, step=STEPS.get(name, 1))
    assert not [finding for finding in (*found.parameters, *found.general) if finding.is_fault or finding.is_undecided]


def test_a_pass_that_cannot_be_recorded(tmp_path):
    text = HEAD + "model = torch.jit.script(nn.Linear(4, 2))\n" + OPTIMIZER + LOOP
    with pytest.raises(UsageError, match=r"torch\.jit"), pytest.warns(DeprecationWarning, match="torch.jit"):
        run_text(text, tmp_path)
