"""WRONG: a hand-written backward gives another gradient than its forward has."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.finite_differences.directional import Comparison, describe_factor, is_one_factor
from deconv_cli.gradients.gradient_error import GradientError
from deconv_cli.gradients.handwritten import WrongInput
from deconv_cli.gradients.rules.wrong import describe_difference


def find_wrong_function(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient passes a wrong backward."""
    wrong = [item for item in evidence.wrong_inputs_before(name) if not item.is_on_purpose]
    if not wrong or evidence.gradient(name) is None:
        return None
    detail = describe_difference(evidence, name)
    detail = detail or "by way of the hand-written backward, which was checked by itself"
    return Finding(Verdict.WRONG, unique_causes(_cause(item) for item in wrong), detail)


def find_wrong_function_in_model(evidence: Evidence) -> list[Finding]:
    """Find wrong backwards that no parameter is behind, once for each line."""
    known = {item.location for item in evidence.wrong_inputs if item.parameters or item.is_on_purpose}
    causes = {item.location: _cause(item) for item in reversed(evidence.wrong_inputs) if item.location not in known}
    return [Finding(Verdict.WRONG, (cause,), "no parameter is behind this input") for cause in causes.values()]


def _cause(item: WrongInput) -> Cause:
    operation, error = f"{item.function}.backward", item.error
    what = f"the gradient for '{item.name}'"
    if item.is_missing:
        why = f"{operation} returns None for '{item.name}', which has a gradient."
        suggestion = f"return {what}"
    elif item.mistake is not None:
        names = {"function": operation, "name": f"'{item.name}'", "n": item.number}
        why, suggestion = (text.format(**names) for text in item.mistake.value)
    elif error is None:
        raise LookupError(f"nothing is wrong with {operation}")
    else:
        found = error.comparison
        why = (
            f"{found.n_wrong} of {found.n_tried} elements of {what} are wrong{_describe_rows(error)}; at "
            f"{list(found.element or ())} backward gives {found.autograd:.6g}, {error.reference} gives "
            f"{found.numeric:.6g}."
        )
        suggestion = _suggest(found, what)
    return Cause(operation, item.location, why, suggestion)


def _suggest(found: Comparison, what: str) -> str:
    ratio = found.ratio
    if ratio is None or abs(ratio - 1) <= 1e-6:
        return f"compare the formula of {what} with forward, term by term"
    if found.n_wrong == found.n_tried and ratio != 0 and is_one_factor(ratio, found.ratio_range):
        return f"divide {what} by {ratio:.4g}" if abs(ratio) > 1 else f"multiply {what} by {1 / ratio:.4g}"
    return f"compare the formula of {what} with forward there: it is off {describe_factor(ratio, found.ratio_range)}"


def _describe_rows(error: GradientError) -> str:
    """Name the rows where the wrong elements lie, if that is not everywhere."""
    (first, last), found = error.rows, error.comparison
    if found.n_wrong == found.n_tried or not found.element or last - first + 1 == found.n_tried:
        return ""
    block = error.block
    gate = f" (the whole fault lies in block {block[0] + 1} of {block[1]})" if block else ""
    return f", in rows {first} to {last}{gate}"
