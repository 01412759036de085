"""A parameter that torch.autograd.grad leaves out of a derivative which is all that the loss keeps."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.gradient_report import Cause, Finding, Verdict

SMOOTH_UNITS = "use smooth units, such as SiLU, tanh or softplus, where the loss holds a derivative"


def find_left_out_of_derivative(evidence: Evidence, name: str) -> Finding | None:
    """Tell a parameter that drops out of a derivative from one that moves it, smoothly or in steps.

    Moved smoothly it is DETACHED, moved in steps its gradient is ZERO, not moved it is ZERO BY CONSTRUCTION.
    """
    response = evidence.responses.get(name)
    if response is None:
        return None
    location = evidence.forward.log.shifted[evidence.forward.bit(name)]
    if response.is_smooth:
        verdict = Verdict.DETACHED
        why = "the derivative depends on this parameter, but a hand-written backward on the way gives plain values."
        suggestion = "write that backward with torch functions of saved tensors"
    elif response.is_moved:
        verdict, suggestion = Verdict.ZERO, SMOOTH_UNITS
        why = "the loss holds only a derivative, and that changes with this parameter in steps: its slope is zero."
    else:
        verdict = Verdict.ZERO_BY_CONSTRUCTION
        why = "the loss holds only a derivative, from which this parameter drops out: it shifts what is differentiated."
        suggestion = "nothing, unless what is differentiated belongs in the loss as well"
    return Finding(verdict, (Cause("torch.autograd.grad(...)", location, why, suggestion),))
