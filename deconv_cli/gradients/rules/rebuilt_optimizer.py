"""OPTIMIZER: it is made again for every step, so that what it keeps from step to step never comes to anything."""

from __future__ import annotations

from collections import Counter

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.training.training_evidence import TrainingEvidence

_LEAST_STEPS = 3


def find_rebuilt_optimizer(evidence: TrainingEvidence) -> list[Finding]:
    """Find a line at which optimizers of the same weights take one step each, and none goes on from another's state.

    One for each epoch takes more steps; where the weights too are put back for every step, that is on purpose.
    """
    steps, restored = evidence.events.steps, evidence.events.overwritten.keys()
    n_steps = Counter(step.optimizer for step in steps)
    single = [step for step in steps if step.begins_state and n_steps[step.optimizer] == 1]
    alike = Counter((step.name, step.location, step.held) for step in single if step.held.isdisjoint(restored))
    suggestion = "make the optimizer once, before the loop; a scheduler changes its learning rate"
    return [
        Finding(Verdict.OPTIMIZER, (Cause("optimizer.step()", location, _why(name, n), suggestion),))
        for (name, location, _), n in alike.items()
        if n >= _LEAST_STEPS
    ]


def _why(name: str, n: int) -> str:
    return f"a new {name} takes each of {n} steps: what it keeps from one to the next, such as momentum, is lost."
