"""Second derivatives: finite differences of the gradient against autograd differentiated twice."""

from __future__ import annotations

import math
import time

import torch

from deconv_cli.gradients.differences import Outcome, Probe, Slot, compare_slots
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.verdicts import Cause, ParameterFinding, Place, Verdict


def check_second_order(
    subject: Subject,
    findings: dict[str, ParameterFinding],
    epsilon: float,
    budget: float,
    not_checked: list[str],
) -> None:
    """Compare the Hessian along a random vector with finite differences of the gradient along it.

    Args:
        subject: the model, in the precision of the comparison.
        findings: parameters whose first derivatives are right; what is found is noted in them.
        epsilon: relative precision of the loss.
        budget: seconds.
        not_checked: gets a sentence for each parameter without a verdict.
    """
    names = list(findings)
    parameters = [subject.parameters[name] for name in names]
    generator = torch.Generator().manual_seed(subject.seed + 2)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def slope(*, keep_graph: bool) -> torch.Tensor:
        loss = as_scalar(subject.run()[1])
        gradients = torch.autograd.grad(loss, parameters, create_graph=keep_graph, allow_unused=True)
        terms = [(g * v).sum() for g, v in zip(gradients, along, strict=True) if g is not None]
        return torch.stack(terms).sum()

    try:
        value = slope(keep_graph=True)
        second = (
            torch.autograd.grad(value, parameters, allow_unused=True) if value.requires_grad else [None] * len(names)
        )
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        not_checked.append(f"second derivatives: autograd cannot differentiate twice here ({reason[:200]})")
        return
    slots = [
        Slot(name, parameter, torch.zeros_like(parameter) if gradient is None else gradient)
        for name, parameter, gradient in zip(names, parameters, second, strict=True)
    ]
    probe = Probe(lambda: float(slope(keep_graph=False)), epsilon, time.monotonic() + budget)
    for name, result in compare_slots(probe, slots, seed=subject.seed + 3).items():
        finding, comparison = findings[name], result.comparison
        finding.second_order = comparison
        if result.outcome is Outcome.DIFFERS and comparison is not None:
            finding.verdict = Verdict.WRONG
            why = (
                f"the second derivative at {list(comparison.element or ())} is {comparison.autograd:.6g} by autograd "
                f"and {comparison.numeric:.6g} ± {comparison.error_bar:.1g} by finite differences of the gradient."
            )
            remedy = "write backward with torch functions of saved tensors, so that it can be differentiated itself"
            finding.causes = (Cause("second derivative", Place(), why, remedy),)
        elif result.outcome is Outcome.UNSURE:
            is_flat = comparison is not None and comparison.autograd == 0 and not math.isfinite(comparison.resolution)
            if not is_flat or comparison is None or abs(comparison.numeric) > 5 * comparison.error_bar:
                not_checked.append(f"{name}: its second derivative could not be compared sharply")
