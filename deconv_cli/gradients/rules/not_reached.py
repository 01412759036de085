"""NOT REACHED: nothing in this batch uses the parameter, but other data, or other random numbers, do."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.code_location import CodeLocation


def find_not_reached(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that gets no gradient from this batch and gets one from another, where others get one here."""
    is_any_given = any(magnitude.largest for magnitude in evidence.magnitudes.values())
    if name not in evidence.reached_by_others or not is_any_given:
        return None
    return Finding(Verdict.NOT_REACHED, (used_by_other_data(name),))


def used_by_other_data(name: str) -> Cause:
    """Explain a parameter that this batch does not use."""
    why = "whether this parameter is used depends on the data or on chance: others than these give it a gradient."
    suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
    return Cause("not reached by this batch", CodeLocation(module=name.rpartition(".")[0]), why, suggestion)
