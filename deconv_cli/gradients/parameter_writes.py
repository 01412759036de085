"""Parameters that forward itself writes to: what an optimizer does to them may be lost with the next pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.code_location import CodeLocation


@dataclass(frozen=True)
class Overwritten:
    """A parameter that is written to: whether any change of it is `lost`, else each pass changes it further."""

    location: CodeLocation
    is_lost: bool


def find_overwritten(subject: Subject, written: dict[str, CodeLocation]) -> dict[str, Overwritten]:
    """Try the parameters that forward wrote to on the given lines.

    A projection, such as a clamp or a limit of the norm, keeps what lies within its limits and does nothing the second
    time: it is sound.
    """
    found = {}
    for name, location in written.items():
        parameter = subject.parameters[name]
        if not parameter.requires_grad:
            continue
        own = parameter.data
        before = own.clone()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(before.shape, generator=generator).to(before) * before.abs().mean().clamp_min(0.1) * 1e-2
        once = _after_a_pass(subject, name, before)
        moved = _after_a_pass(subject, name, once / 2 + noise)
        twice = _after_a_pass(subject, name, once)
        parameter.data = own
        if torch.equal(once, moved):
            found[name] = Overwritten(location, is_lost=True)
        elif not torch.allclose(twice, once, rtol=1e-6):
            found[name] = Overwritten(location, is_lost=False)
    return found


def _after_a_pass(subject: Subject, name: str, start: torch.Tensor) -> torch.Tensor:
    """Return what a pass leaves of a parameter."""
    parameter = subject.parameters[name]
    parameter.data = start.clone()
    with subject.keeping_writes_to(name):
        subject.run()
    return parameter.data.clone()
