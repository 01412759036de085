"""The report of a script that was watched: of the pass that was checked, and of the optimizers after it."""

from __future__ import annotations

from dataclasses import replace

from deconv_cli.errors import UsageError
from deconv_cli.gradients.findings import Cause, ParameterFinding, Verdict
from deconv_cli.gradients.gradient_report import GradientReport
from deconv_cli.gradients.rules import find_in_training
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.training_evidence import TrainingEvidence
from deconv_cli.gradients.training.training_watch import TrainingWatch

_WITHOUT_GRADIENT = (Verdict.UNUSED, Verdict.NOT_LOSS, Verdict.DETACHED)


def report_training(watch: TrainingWatch) -> GradientReport:
    """Join what was found of the pass and of the optimizers.

    Raises:
        UsageError: the pass that was to be checked never came.
    """
    if watch.report is None or watch.subject is None:
        raise UsageError(
            f"there were {watch.n_backward} calls of backward(), so none was checked; the code should train, by "
            "loss.backward(), within what is watched, or an earlier pass be chosen."
        )
    evidence = TrainingEvidence(watch.report, watch.subject.trainable, watch.events)
    parameters = tuple(_of_another_loss(finding, evidence) for finding in watch.report.parameters)
    return replace(watch.report, parameters=parameters, general=(*watch.report.general, *find_in_training(evidence)))


def _of_another_loss(finding: ParameterFinding, evidence: TrainingEvidence) -> ParameterFinding:
    """Excuse a weight that another pass gives a gradient, or that the optimizer of this loss does not hold."""
    if finding.verdict not in _WITHOUT_GRADIENT:
        return finding
    key, events, step = id(evidence.weights[finding.name]), evidence.events, evidence.first_step
    is_held_elsewhere = any(key in held for held in events.held) and step is not None and key not in step.held
    if key not in events.reached and not is_held_elsewhere:
        return finding
    why = "another backward pass gives this weight its gradient, or another optimizer holds it."
    suggestion = "nothing; check that pass by its number to be sure of it"
    cause = Cause("another loss", CodeLocation(), why, suggestion)
    return replace(finding, verdict=Verdict.NOT_REACHED, causes=(cause,))
