"""SUBSTITUTED: code puts another gradient in the place of the derivative on purpose."""

from __future__ import annotations

from torch import nn

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.finite_differences.directional import Outcome
from deconv_cli.gradients.handwritten import WrongInput
from deconv_cli.gradients.rules.wrong import describe_difference
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_function

_NOTHING = "nothing, if that is meant; take the Function out to compare the rest"
_NO_JUDGE = "finite differences cannot tell whether the gradient is what is meant"


def find_substituted(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient passes a backward that is there to give another one than the derivative."""
    meant = [item for item in evidence.wrong_inputs_before(name) if item.is_on_purpose]
    if not meant or evidence.gradient(name) is None:
        return None
    return Finding(Verdict.SUBSTITUTED, unique_causes(map(_cause, meant)), _beside(evidence, name))


def _beside(evidence: Evidence, name: str) -> str:
    """Write the numbers that differ beside the reason why that proves nothing."""
    return ": ".join(filter(None, (_NO_JUDGE, describe_difference(evidence, name).replace("are wrong", "differ"))))


def _cause(item: WrongInput) -> Cause:
    operation = f"{item.function}.backward"
    if item.is_unchanged:
        why = (
            f"forward leaves '{item.name}' as it is, and {operation} changes its gradient, which is all that it is for."
        )
    else:
        why = (
            f"{operation} gives a surrogate for '{item.name}', since the derivative of a step is zero: "
            f"{item.error.surrogate if item.error else ''}."
        )
    return Cause(operation, item.location, why, _NOTHING)


def find_renormed(evidence: Evidence, name: str) -> Finding | None:
    """Find an embedding whose rows forward itself scales back to `max_norm`, which no gradient knows of."""
    found, owner = evidence.comparison(name), name.rpartition(".")[0]
    module = dict(evidence.model.named_modules()).get(owner)
    is_limited = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    if not is_limited or found is None or found.outcome is not Outcome.DIFFERS:
        return None
    why = "max_norm scales rows back before they are read, past autograd: the gradient is that of the rows as scaled."
    cause = Cause("max_norm", evidence.module_of(name), why, "nothing, if that is meant")
    return Finding(Verdict.SUBSTITUTED, (cause,), _beside(evidence, name))


def find_limited_by_hook(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter with a hook of its own that takes part of its gradient away, as a mask or a limit does."""
    hooks, found = evidence.parameters[name]._backward_hooks, evidence.comparison(name)
    if not hooks or found is None or found.outcome is not Outcome.DIFFERS or not found.numeric:
        return None
    share = found.autograd / found.numeric
    least, most = found.ratio_range or (share, share)
    if not 0 <= least <= most <= 1:
        return None
    why = "a hook on this weight takes part of its gradient away, as a mask or a limit does."
    locations = [location_of_function(hook) or CodeLocation() for hook in hooks.values()]
    causes = [Cause("a gradient hook", location, why, "nothing, if that is meant") for location in locations]
    return Finding(Verdict.SUBSTITUTED, unique_causes(causes), _beside(evidence, name))
