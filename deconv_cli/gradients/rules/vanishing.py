"""VANISHING: ‖gradient‖ / ‖weight‖ is a million times smaller than in the layer next to the loss."""

from __future__ import annotations

from itertools import pairwise

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.code_location import CodeLocation

COLLAPSE = 1e-6


def find_vanishing(evidence: Evidence, name: str) -> Finding | None:
    """Find a weight whose gradient has faded, and the layer at which it falls most."""
    relative = relative_ratio(evidence, name)
    if relative is None or relative >= COLLAPSE:
        return None
    factor, near, far = min(steps_between_layers(evidence))
    why = f"the gradient fades on its way back; the largest fall, by {1 / factor:.2g}, is from '{near}' to '{far}'."
    suggestion = "use ReLU-like units, residual connections or normalization between the layers"
    cause = Cause(f"the way back to '{far}'", place_of_layer(evidence, far), why, suggestion)
    return Finding(Verdict.VANISHING, (cause,), describe_ratio(evidence, name))


def relative_ratio(evidence: Evidence, name: str) -> float | None:
    """Compare ‖gradient‖ / ‖weight‖ with that of the layer nearest to the loss; None for what is no sound weight.

    Never with a fixed number: a small loss has small gradients everywhere and is no fault.
    """
    ratios = {layer.name: layer.ratio for layer in evidence.layers}
    return ratios[name] / evidence.layers[0].ratio if len(ratios) > 1 and name in ratios else None


def steps_between_layers(evidence: Evidence) -> list[tuple[float, str, str]]:
    """List by what factor the ratio changes from each layer to the next one away from the loss, and their names."""
    return [(far.ratio / near.ratio, near.name, far.name) for near, far in pairwise(evidence.layers)]


def place_of_layer(evidence: Evidence, name: str) -> CodeLocation:
    """Return the line on which a parameter was read last."""
    assert evidence.double is not None
    forward = evidence.double.forward
    return forward.log.last_use.get(forward.bit(name)) or CodeLocation()


def describe_ratio(evidence: Evidence, name: str) -> str:
    """Write the ratio of a weight and that of the layer next to the loss."""
    ratio = next(layer.ratio for layer in evidence.layers if layer.name == name)
    return f"‖gradient‖ / ‖weight‖ is {ratio:.2g}, next to the loss it is {evidence.layers[0].ratio:.2g}"
