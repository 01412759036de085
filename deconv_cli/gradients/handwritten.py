"""Check every hand-written backward on its own against autograd of its forward and finite differences."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch.utils import _pytree as pytree

from deconv_cli.gradients.findings import Cause
from deconv_cli.gradients.finite_differences import Comparison, describe_factor, is_one_factor
from deconv_cli.gradients.function_trial import FunctionTrial, compare_input, differentiate
from deconv_cli.gradients.nested_tensors import real
from deconv_cli.gradients.tracing.backward_lines import BackwardSource
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, FunctionCall

_CALLS_PER_FUNCTION = 3


class Mistake(Enum):
    """A frequent mistake of a backward: why the gradient is wrong and what to write, with places for names."""

    WRITES_TO_SAVED = (
        "{function} overwrites its input tensors, so a second call and all other readers get wrong values.",
        "work on a copy: tensor = tensor.clone()",
    )
    WRITES_TO_INCOMING = (
        "{function} overwrites the incoming gradient, which other operations may still read.",
        "work on a copy: grad = grad.clone()",
    )
    DRAWS_AGAIN = (
        "{function} draws random numbers, so its gradient is not that of what forward drew.",
        "let forward save what it drew, with ctx.save_for_backward, and use that",
    )
    NOT_LINEAR = (
        "the gradient for {name} is not linear in the incoming gradient, as the chain rule requires; {function} "
        "ignores, clips or thresholds the incoming gradient, or adds to it.",
        "only multiply and sum the incoming gradient; clip with torch.nn.utils.clip_grad_norm_ afterwards",
    )
    MEAN_FOR_SUM = (
        "the gradient for {name} is the mean over {n} samples, but the chain rule requires their sum.",
        "sum over the samples; the loss already divides by their number",
    )


@dataclass(frozen=True, eq=False)
class WrongInput:
    """An input of a Function for which its backward gives a wrong gradient, or None (`is_missing`).

    Attributes:
        cause: with the line in backward, the first line of backward, or the call of the Function.
        parameters: those behind this input.
        place: of this input among the tensors of a call.
        purpose: why the code may mean another gradient, a surrogate for that of a step, or one that is reversed, scaled
            or limited; empty if nothing speaks for that.
    """

    function: str
    name: str
    cause: Cause
    parameters: frozenset[str]
    place: int
    purpose: str = ""
    is_missing: bool = False


def check_functions(forward: ForwardTrace, budget: float) -> tuple[list[WrongInput], list[str]]:
    """Check every hand-written Function on the inputs of its calls, in `budget` seconds.

    The batch is whole, since a fault may lie in the sum over samples.

    Returns:
        The inputs with a wrong gradient, and sentences on calls that could not be checked.
    """
    deadline = time.monotonic() + budget
    found: dict[tuple[CodeLocation, str], WrongInput] = {}
    unchecked: list[str] = []
    counts: Counter[type] = Counter()
    for call in forward.calls:
        counts[call.function] += 1
        if counts[call.function] > _CALLS_PER_FUNCTION:
            # More calls of a wrong Function only add the parameters behind them.
            for key, item in found.items():
                if item.function == call.function.__name__:
                    behind = _behind(call, forward, item.place)
                    found[key] = replace(item, parameters=item.parameters | behind)
            continue
        try:
            wrong = _CheckedCall(call, forward).check(deadline)
        except Exception as error:  # noqa: BLE001  a hand-written Function may raise anything
            reason = f"could not be run on its own ({type(error).__name__})"
            unchecked.append(f"{call.function.__name__} at {call.location} {reason}")
            continue
        for item in wrong:
            key = item.cause.location, item.name
            first = found.setdefault(key, item)
            found[key] = replace(first, parameters=first.parameters | item.parameters)
    return list(found.values()), unchecked


def _behind(call: FunctionCall, forward: ForwardTrace, place: int) -> frozenset[str]:
    """Name the parameters behind a tensor, counted among the arguments of a call."""
    children = [child for child, _ in call.node.next_functions] if call.node is not None else []
    child = children[place] if place < len(children) else None
    reached = forward.graph.parameters_below(child) if child is not None else 0
    return frozenset(name for name in forward.names if forward.bit(name) & reached)


class _CheckedCall:
    """A call of a hand-written Function, which is run again to find the wrong gradients of its inputs."""

    def __init__(self, call: FunctionCall, forward: ForwardTrace) -> None:
        self._call, self._forward = call, forward
        self._trial = FunctionTrial.of(call)
        self._operation = f"{call.function.__name__}.backward"
        self._names = _input_names(call.function, len(self._trial.leaves))
        self._source = BackwardSource(call.function)

    def check(self, deadline: float) -> list[WrongInput]:
        """List the inputs with a wrong gradient."""
        trial = self._trial
        compared = ((index, compare_input(trial, index, deadline)) for index in range(len(trial.tensors)))
        errors = {index: error for index, error in compared if error is not None}
        written = _find_write(trial)
        # A write spoils the values that backward reads afterwards, but not the incoming gradient of each call.
        is_spoiled = written in (Mistake.WRITES_TO_SAVED, Mistake.DRAWS_AGAIN)
        found = [] if is_spoiled else self._of_errors(errors)
        if written is None:
            return found
        why, suggestion = (text.format(function=self._operation) for text in written.value)
        item = self._item(0, self._source.of_write(), why, suggestion)
        if not is_spoiled or not errors:
            behind = (_behind(self._call, self._forward, place) for place in trial.places)
            item = replace(item, parameters=frozenset().union(*behind))
        return [item, *found]

    def _of_errors(self, errors: dict[int, tuple[Comparison, str]]) -> list[WrongInput]:
        trial = self._trial
        surrogates = {n: trial.proof_of_surrogate(n) for n in errors}
        meant = {n for n, surrogate in surrogates.items() if surrogate or trial.given[n] is None}
        first = self._first_mistake(errors, meant) if errors.keys() - meant else None
        found = []
        for index, (comparison, reference) in errors.items():
            location = None if index in meant else first
            location = location or self._source.of_gradient(trial.positions[index])
            why, suggestion = self._explain(index, comparison, reference)
            is_missing, purpose = trial.given[index] is None, surrogates[index]
            if trial.returns(index):
                purpose = "forward returns this input unchanged, so its gradient is changed on purpose"
            item = self._item(index, location, why, suggestion)
            found.append(replace(item, purpose="" if is_missing else purpose, is_missing=is_missing))
        return found

    def _explain(self, index: int, found: Comparison, reference: str) -> tuple[str, str]:
        """Write why the gradient for an input is wrong, and what to write instead."""
        name = f"'{self._names[self._trial.positions[index]]}'"
        what = f"the gradient for {name}"
        if self._trial.given[index] is None:
            return f"{self._operation} returns None for {name}, which has a gradient.", f"return {what}"
        mistake, number = _find_mistake(self._trial, index, found) or (None, 0)
        if mistake is not None:
            why, suggestion = (text.format(function=self._operation, name=name, n=number) for text in mistake.value)
            return why, suggestion
        why = (
            f"{found.n_wrong} of {found.n_tried} elements of {what} are wrong; at {list(found.element or ())} backward "
            f"gives {found.autograd:.6g}, {reference} gives {found.numeric:.6g}."
        )
        return why, _suggest(found, what)

    def _first_mistake(self, errors: dict[int, tuple[Comparison, str]], meant: set[int]) -> CodeLocation | None:
        """Find the first line of backward that departs from the chain rule."""
        trial, positions = self._trial, self._trial.positions
        # A gradient of zero, as of the weights of a state that is zero, proves nothing about the lines before.
        others = {n: given for n, given in enumerate(trial.given) if n not in errors}
        right = [positions[n] for n, given in others.items() if given is not None and bool(given.any())]
        wrong = [n for n in errors if n not in meant]
        is_scaled = all(c.ratio and is_one_factor(c.ratio, c.ratio_range) for c in (errors[n][0] for n in wrong))
        pairs = [(trial.given[n], trial.expected[n]) for n in wrong] if trial.expected else []
        ratios = [hand / own for hand, own in pairs if hand is not None and own is not None]
        known, places = trial.known_values(), [positions[n] for n in wrong]
        return self._source.of_first_mistake(trial.gradients, known, places, right, ratios, is_scaled=is_scaled)

    def _item(self, index: int, location: CodeLocation, why: str, suggestion: str) -> WrongInput:
        name, place = self._names[self._trial.positions[index]], self._trial.places[index]
        cause = Cause(self._operation, location if location.file else self._call.location, why, suggestion)
        behind = _behind(self._call, self._forward, place)
        return WrongInput(self._call.function.__name__, name, cause, behind, place)


def _input_names(function: type[torch.autograd.Function], n_inputs: int) -> list[str]:
    names: list[str] = []
    with contextlib.suppress(ValueError, TypeError):
        names = list(inspect.signature(function.forward).parameters)
    if function.setup_context is torch.autograd.Function.setup_context:
        names = names[1:]
    return [names[n] if n < len(names) else f"input {n + 1}" for n in range(n_inputs)]


def _find_mistake(trial: FunctionTrial, index: int, found: Comparison) -> tuple[Mistake, int] | None:
    """Name the mistake in the gradient of one input, with a number of samples."""
    hand = trial.given[index]
    if hand is None or not bool(hand.any()):
        return None
    twice = trial.gradients([2 * weight for weight in trial.weights])[index]
    if twice is not None and not _agree([twice], [2 * hand], 1e-4):
        return Mistake.NOT_LINEAR, 0
    n_samples = round(1 / found.ratio) if found.ratio and is_one_factor(found.ratio, found.ratio_range) else 0
    sizes = {leaf.shape[0] for leaf in trial.leaves if isinstance(leaf, torch.Tensor) and leaf.ndim}
    return (Mistake.MEAN_FOR_SUM, n_samples) if n_samples > 1 and n_samples in sizes else None


def _suggest(found: Comparison, what: str) -> str:
    ratio = found.ratio
    if ratio is None or abs(ratio - 1) <= 1e-6:
        return f"compare the formula of {what} with forward, term by term"
    if is_one_factor(ratio, found.ratio_range) and abs(ratio + 1) <= 1e-6:
        return f"negate {what}"
    if found.n_wrong == found.n_tried and ratio != 0 and is_one_factor(ratio, found.ratio_range):
        return f"divide {what} by {ratio:.4g}" if abs(ratio) > 1 else f"multiply {what} by {1 / ratio:.4g}"
    return f"compare the formula of {what} with forward there: it is off {describe_factor(ratio, found.ratio_range)}"


def _find_write(trial: FunctionTrial) -> Mistake | None:
    """Find that backward writes to the tensors that it reads, or draws random numbers."""
    arguments = trial.arguments()
    given = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    outputs = real(trial.function.apply(*arguments))
    before = [tensor.detach().clone() for tensor in given]
    weights, tensors = [weight.clone() for weight in trial.weights], trial.tensors
    first = differentiate(outputs, tensors, weights, retain_graph=True)
    first = [None if gradient is None else gradient.clone() for gradient in first]
    if any(not torch.equal(weight, own) for weight, own in zip(weights, trial.weights, strict=True)):
        return Mistake.WRITES_TO_INCOMING
    is_written = any(not torch.equal(tensor.detach(), own) for tensor, own in zip(given, before, strict=True))
    if is_written:
        return Mistake.WRITES_TO_SAVED
    if _agree(first, differentiate(outputs, tensors, trial.weights, retain_graph=True), 1e-6):
        return None
    runs = []
    for seed in (1, 0, 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            runs.append(differentiate(outputs, tensors, trial.weights, retain_graph=True))
    is_drawn = _agree(runs[1], runs[2], 1e-6) and not _agree(runs[0], runs[1], 1e-6)
    return Mistake.DRAWS_AGAIN if is_drawn else Mistake.WRITES_TO_SAVED


def _agree(one: Sequence[torch.Tensor | None], other: Sequence[torch.Tensor | None], tolerance: float) -> bool:
    """Return whether gradients are the same; None counts as zero."""
    for mine, yours in zip(one, other, strict=True):
        a = torch.zeros(()) if mine is None else mine
        b = torch.zeros(()) if yours is None else yours
        if bool((a - b).abs().max() > tolerance * torch.maximum(a.abs().max(), b.abs().max())):
            return False
    return True
