"""ZERO BY CONSTRUCTION: the loss cannot depend on the parameter, as on a bias before batch normalization."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.gradient_report import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace

_NORMALIZING = ("BatchNorm", "LayerNorm", "GroupNorm", "Softmax", "ScaledDot")
_MAX_NODES = 200


def find_zero_by_construction(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that what follows takes away again."""
    double = evidence.double
    if double is None or name not in double.constants:
        return None
    follower = _follower(evidence, name, double.backward)
    why = f"{follower} takes away whatever this parameter adds, so the loss does not depend on it."
    suggestion = "leave it out (bias=False); it costs memory and does nothing"
    return Finding(Verdict.ZERO_BY_CONSTRUCTION, (Cause(follower, evidence.module_of(name), why, suggestion),))


def _follower(evidence: Evidence, name: str, backward: BackwardTrace) -> str:
    """Name the nearest normalization behind a parameter."""
    waiting = [node for node, _ in backward.readers_of(evidence.parameters[name])]
    for node in waiting:
        kind = type(node).__name__
        if any(word in kind for word in _NORMALIZING):
            return kind.removesuffix("0").removesuffix("Backward").removeprefix("Native")
        if len(waiting) < _MAX_NODES:
            waiting += [reader for reader, _ in backward.consumers.get(node, []) if reader not in waiting]
    return "what follows"
