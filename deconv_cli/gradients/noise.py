"""Whether the loss is the same when it is computed twice."""

from __future__ import annotations

import math

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing import Trace
from deconv_cli.gradients.verdicts import Cause, GeneralFinding, Place, Verdict

_ROUNDING = 1e-5
"""Relative difference of two runs up to which it is taken for sums in a changing order."""


def study_noise(subject: Subject, trace: Trace) -> tuple[GeneralFinding | None, str | None]:
    """Run twice with one seed and once with another.

    Returns:
        A finding if one seed does not give one loss, and a note if the loss depends on the seed.
    """
    first, second, other = subject.value(), subject.value(), subject.value(subject.seed + 1)
    if not _same(first, second):
        return GeneralFinding(Verdict.NOISY, (_cause(first, second, trace),), _told(first, second)), None
    if _same(first, other):
        return None, None
    drawn = _drawn_by_model(trace)
    where = f" ({drawn[0][0]} at {drawn[0][1]})" if drawn else ""
    return None, f"the loss is random{where}; seed {subject.seed} was set before every run, so it could be checked"


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


def _told(first: float, second: float) -> str:
    return f"two runs with the same seed gave the losses {first:.9g} and {second:.9g}"


def _cause(first: float, second: float, trace: Trace) -> Cause:
    relative = abs(first - second) / max(abs(first), abs(second))
    if relative <= _ROUNDING:
        why = f"the loss differs by {relative:.1g} from run to run: sums are taken in a changing order."
        return Cause("a non-deterministic operation", Place(), why, "torch.use_deterministic_algorithms(True)")
    drawn = _drawn_by_model(trace)
    if not drawn:
        why = f"the loss differs by {relative:.1g} from run to run: the model keeps something of each run for the next."
        return Cause("state that outlives a run", Place(), why, "give the state as an input of forward, and return it")
    why = f"the loss differs by {relative:.1g} from run to run: random numbers are drawn that no seed reaches."
    return Cause(*drawn[0], why, "draw with torch's own generator, so that torch.manual_seed reaches it")


def _drawn_by_model(trace: Trace) -> list[tuple[str, Place]]:
    """Leave out what is drawn around the model, such as the weights of the loss that is used where none is named."""
    return [(words, place) for words, place in trace.random if place.file or place.module]
