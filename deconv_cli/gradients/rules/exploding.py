"""EXPLODING: ‖gradient‖ / ‖weight‖ is a million times larger than in the layer next to the loss."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Cause, Finding, Verdict
from deconv_cli.gradients.rules.vanishing import (
    COLLAPSE,
    describe_ratio,
    place_of_layer,
    relative_ratio,
    steps_between_layers,
)


def find_exploding(evidence: Evidence, name: str) -> Finding | None:
    """Find a weight whose gradient has grown out of bounds, and the layer at which it rises most."""
    relative = relative_ratio(evidence, name)
    if relative is None or relative <= 1 / COLLAPSE:
        return None
    factor, near, far = max(steps_between_layers(evidence))
    why = f"the gradient grows on its way back; the largest rise, by {factor:.2g}, is from '{near}' to '{far}'."
    suggestion = "start from smaller (orthogonal) weights, or clip with torch.nn.utils.clip_grad_norm_"
    cause = Cause(f"the way back to '{far}'", place_of_layer(evidence, far), why, suggestion)
    return Finding(Verdict.EXPLODING, (cause,), describe_ratio(evidence, name))
