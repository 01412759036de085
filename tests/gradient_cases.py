"""Specimens at hand: import one, examine it, and find the line that is to blame by the mark on it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

from deconv_cli.gradients.examination import examine
from deconv_cli.gradients.losses import projection, user_loss
from deconv_cli.gradients.subject import Subject

SPECIMENS = Path(__file__).parent / "specimens"


def load_specimen(name: str):
    """Import a file of tests/specimens."""
    key = f"specimen_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, SPECIMENS / f"{name}.py")
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[key]


def blamed_line(name: str, mark: str) -> int:
    """Find the line of a specimen that carries a mark."""
    lines = (SPECIMENS / f"{name}.py").read_text(encoding="utf-8").splitlines()
    (found,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# blame: {mark}")]
    return found


def examined(model, *shape, loss=projection, target=None, inputs=None, seed=0, **options):
    """Examine a model on normal inputs of a shape."""
    if inputs is None:
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if loss is not projection:
        loss = user_loss(loss, has_target=target is not None)
    return examine(Subject(model, (inputs,), {}, target, loss, seed), **options)


def verdicts(examination) -> dict[str, str]:
    return {finding.name: finding.verdict.value for finding in examination.parameters}


def causes(examination, name: str):
    return next(finding for finding in examination.parameters if finding.name == name).causes
