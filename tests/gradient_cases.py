"""Networks with a known fault: import one, check it, and find the line at fault by the mark on it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

import deconv_cli
from deconv_cli.gradients.checker import check_subject
from deconv_cli.gradients.losses import projection, user_loss
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.training.script import check_script

FIXTURES = Path(__file__).parent / "fixtures"


def load_fixture(name: str):
    """Import a file of tests/fixtures."""
    key = f"fixture_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, FIXTURES / f"{name}.py")
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[key]


def blamed_line(name: str, mark: str) -> int:
    """Find the line of a fixture that carries a mark."""
    lines = (FIXTURES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    (found,) = [n for n, line in enumerate(lines, 1) if line.endswith((f"# blame: {mark}", f"  # {mark}"))]
    return found


def checked(model, *shape, loss=projection, target=None, inputs=None, seed=0, **options):
    """Check a model on normal inputs of a shape."""
    if inputs is None:
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if loss is not projection:
        loss = user_loss(loss, has_target=target is not None)
    return check_subject(Subject(model, (inputs,), {}, target, loss, seed), **options)


def check_case(case):
    """Check a case of catalogue.py."""
    return deconv_cli.check_gradients(case.model, case.inputs, loss=case.loss, target=case.target, budget=10.0)


def verdicts(report) -> dict[str, str]:
    return {finding.name: str(finding.verdict) for finding in report.parameters}


def causes(report, name: str):
    return next(finding for finding in report.parameters if finding.name == name).causes


HEAD = """import torch
from torch import nn
torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))
model = Net()
x, y = torch.randn(8, 4), torch.randn(8, 2)
"""
OPTIMIZER = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
LOOP = """for _ in range(3):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
"""


def changed(old: str, new: str, *, optimizer: str = OPTIMIZER) -> str:
    assert old in LOOP
    return HEAD + optimizer + LOOP.replace(old, new)


def run_text(text, tmp_path, **options):
    path = tmp_path / "train.py"
    path.write_text(text, encoding="utf-8")
    return check_script(path, **options)
