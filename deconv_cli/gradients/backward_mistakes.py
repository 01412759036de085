"""Name the mistake of a hand-written backward: wrong values, side effects, wrong second derivatives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from enum import Enum

import torch
from torch.autograd.function import FunctionCtx
from torch.utils import _pytree as pytree

from deconv_cli.gradients.function_trial import FunctionTrial, Gradients, compare_input, differentiate
from deconv_cli.gradients.nested_tensors import real

_AXES = (0, 1, 2)
"""Axes along which samples or time steps may lie."""


class Mistake(Enum):
    """A mistake from practice: why the gradient is wrong and what to write, with places for names."""

    WRITES_TO_SAVED = (
        "{function} writes to the tensors that it reads, so a second call and all other readers go wrong.",
        "work on a copy: tensor = tensor.clone()",
    )
    WRITES_TO_INCOMING = (
        "{function} writes to the incoming gradient, which other operations may read after it.",
        "work on a copy: grad = grad.clone()",
    )
    NOT_MARKED_DIRTY = (
        "forward writes to {name} without ctx.mark_dirty, unseen by autograd, so everything that read {name} before "
        "gets a wrong gradient.",
        "call ctx.mark_dirty on it and return it, or write to a copy",
    )
    KEEPS_ELSEWHERE = (
        "the gradient for {name} is that of a later call: {function} reads what forward keeps outside of its context.",
        "keep it separately for each call: ctx.save_for_backward(...), or ctx.name = ...",
    )
    NOT_TWICE = (
        "the second derivative by way of {name} is wrong, and {function} raises no error where it is taken.",
        "compute with torch functions of saved tensors, or put @once_differentiable on backward",
    )
    IGNORES_INCOMING = (
        "the gradient for {name} does not depend on the incoming gradient, as if this were the last step of all.",
        "multiply by the incoming gradient: the chain rule wants it",
    )
    NOT_LINEAR = (
        "the gradient for {name} is not linear in the incoming gradient, which the chain rule wants; something in "
        "{function} clips or thresholds it, or adds to it.",
        "let the incoming gradient only be multiplied and summed; clip with torch.nn.utils.clip_grad_norm_ afterwards",
    )
    OTHER_SIGN = ("the gradient for {name} has the wrong sign.", "negate the gradient for {name}")
    SWAPPED = (
        "{function} returns for {name} what belongs to another input.",
        "return the gradients in the order of the arguments of forward",
    )
    TRANSPOSED = ("the gradient for {name} is transposed.", "transpose the gradient for {name}")
    SHIFTED = (
        "the gradient for {name} is shifted by one along axis {n}.",
        "look at the indices of the loop in {function}: step t wants what forward read at step t",
    )
    MEAN_FOR_SUM = (
        "the gradient for {name} is the mean over {n} samples, where the chain rule wants their sum.",
        "sum over the samples; the loss holds the factor of its mean already",
    )
    LEAVES_OUT_SAMPLES = (
        "the gradient for {name} is right for one sample along axis {n} and wrong from two on.",
        "sum over all samples: what is shared by them gets the sum of their gradients",
    )
    LEAVES_OUT_OTHERS = (
        "the gradient for {name} is right where axis {n} has one element and wrong from two on: forward joins the "
        "elements along it, and {function} drops their effect on each other.",
        "differentiate what joins them too, such as a sum, a mean or the taps of a kernel along axis {n}",
    )
    LOST_BETWEEN_STEPS = (
        "the gradient for {name} is right for one time step along axis {n} and wrong from two on: the gradient from "
        "one step to the step before is lost or changed.",
        "add the gradient for the state (dh, dc) from step t + 1 to the incoming gradient of step t",
    )


def find_mistake(trial: FunctionTrial, index: int) -> tuple[Mistake, int] | None:
    """Name the mistake in the gradient of one input, with a number of samples or of an axis."""
    hand = trial.given[index]
    if hand is None or not bool(hand.any()):
        return None
    twice = trial.gradients([2 * weight for weight in trial.weights])[index]
    if twice is not None and not _same(twice, 2 * hand):
        negated = trial.gradients([-weight for weight in trial.weights])[index]
        is_ignored = negated is not None and _same(negated, hand)
        return (Mistake.IGNORES_INCOMING if is_ignored else Mistake.NOT_LINEAR), 0
    return _compare(trial, hand, index) or _by_sizes(trial, index)


def _compare(trial: FunctionTrial, hand: torch.Tensor, index: int) -> tuple[Mistake, int] | None:
    """Compare a gradient with the right one, and with those of other inputs."""
    expected = trial.expected[index] if trial.expected is not None else None
    if expected is None:
        return None
    if _same(hand, -expected):
        return Mistake.OTHER_SIGN, 0
    others = [other for n, other in enumerate(trial.expected or ()) if n != index and other is not None]
    if any(other.shape == hand.shape and _same(hand, other) for other in others):
        return Mistake.SWAPPED, 0
    if hand.ndim >= 2 and hand.shape[-1] == hand.shape[-2] and _same(hand, expected.transpose(-1, -2)):
        return Mistake.TRANSPOSED, 0
    shifted = (axis for axis in range(hand.ndim) if hand.shape[axis] > 2 and _is_shifted(hand, expected, axis))
    axis = next(shifted, None)
    return None if axis is None else (Mistake.SHIFTED, axis)


def _is_shifted(hand: torch.Tensor, expected: torch.Tensor, axis: int) -> bool:
    n = hand.shape[axis] - 1
    later, sooner = hand.narrow(axis, 1, n), hand.narrow(axis, 0, n)
    return _same(later, expected.narrow(axis, 0, n)) or _same(sooner, expected.narrow(axis, 1, n))


def _by_sizes(trial: FunctionTrial, index: int) -> tuple[Mistake, int] | None:
    """Try one slice along an axis, and two: if only two are wrong, backward joins the slices wrongly."""
    for axis in _AXES:
        one, two = trial.narrowed(axis, 1), trial.narrowed(axis, 2)
        if one is None or two is None or not _tells(one, index) or compare_input(one, index) is not None:
            continue
        error = compare_input(two, index)
        if error is None:
            continue
        ratio = error.comparison.ratio
        if ratio is not None and error.is_one_factor and abs(ratio - 0.5) < 1e-3:
            return Mistake.MEAN_FOR_SUM, _n_samples(trial, index, axis)
        if ratio is not None and error.is_one_factor and abs(ratio - 2) < 1e-3:
            return None  # a sum where forward takes a mean, for which the factor says what to write
        if trial.joins(axis):
            return Mistake.LEAVES_OUT_OTHERS, axis
        return (Mistake.LEAVES_OUT_SAMPLES if trial.is_of_samples(axis) else Mistake.LOST_BETWEEN_STEPS), axis
    return None


def _tells(trial: FunctionTrial, index: int) -> bool:
    """Return whether a right gradient proves something: it has several elements, most of them not zero."""
    given = trial.given[index]
    return given is not None and given.numel() > 1 and int((given != 0).sum()) > given.numel() / 2


def _n_samples(trial: FunctionTrial, index: int, axis: int) -> int:
    """Count the samples of a mean, by the missing factor if autograd shows it."""
    hand, expected = trial.given[index], None if trial.expected is None else trial.expected[index]
    if hand is not None and expected is not None and bool((hand != 0).any()):
        return round(float((expected / hand)[hand != 0].median()))
    leaves = [leaf for leaf in trial.leaves if isinstance(leaf, torch.Tensor) and leaf.ndim > axis]
    return max(leaf.shape[axis] for leaf in leaves)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    size = torch.maximum(one.abs().max(), other.abs().max())
    return bool(size > 0) and bool((one - other).abs().max() <= 1e-4 * size)


_TOLERANCE = 1e-6


def find_writes(trial: FunctionTrial) -> tuple[Mistake, int] | None:
    """Find writes of forward to an input without `mark_dirty`, and writes of backward to tensors that it reads.

    Returns:
        The mistake, and the position of the input among the arguments, -1 for a write of backward.
    """
    arguments = trial.arguments()
    given = {n: leaf for n, leaf in enumerate(pytree.tree_leaves(arguments)) if isinstance(leaf, torch.Tensor)}
    before = {n: tensor.detach().clone() for n, tensor in given.items()}
    with _noting_dirty() as dirty:
        outputs = real(trial.function.apply(*arguments))
    for n, tensor in given.items():
        if not torch.equal(tensor.detach(), before[n]):
            return None if dirty else (Mistake.NOT_MARKED_DIRTY, n)
    weights, tensors = [weight.clone() for weight in trial.weights], list(trial.tensors.values())
    first = differentiate(outputs, tensors, weights, retain_graph=True)
    first = [None if gradient is None else gradient.clone() for gradient in first]
    if any(not torch.equal(weight, own) for weight, own in zip(weights, trial.weights, strict=True)):
        return Mistake.WRITES_TO_INCOMING, -1
    if any(not torch.equal(tensor.detach(), before[n]) for n, tensor in given.items()):
        return Mistake.WRITES_TO_SAVED, -1
    again = differentiate(outputs, tensors, trial.weights)
    return None if _agree(first, again) else (Mistake.WRITES_TO_SAVED, -1)


def find_kept_elsewhere(trial: FunctionTrial) -> int | None:
    """Return the index of an input whose gradient changes if forward runs once more before backward."""
    outputs = trial.outputs()
    with contextlib.suppress(Exception):
        trial.moved().outputs()
    later = differentiate(outputs, list(trial.tensors.values()), trial.weights)
    pairs = enumerate(zip(trial.given, later, strict=True))
    return next((index for index, (one, other) in pairs if not _agree([one], [other])), None)


@contextlib.contextmanager
def _noting_dirty() -> Iterator[list[torch.Tensor]]:
    """Collect the tensors that a Function marks as dirty."""
    marked: list[torch.Tensor] = []
    original = FunctionCtx.mark_dirty

    def noting(context: FunctionCtx, *tensors: torch.Tensor) -> None:
        marked.extend(tensors)
        original(context, *tensors)

    FunctionCtx.mark_dirty = noting  # type: ignore[assignment]
    try:
        yield marked
    finally:
        FunctionCtx.mark_dirty = original  # type: ignore[method-assign]


def find_wrong_second_derivative(trial: FunctionTrial) -> int | None:
    """Return the index of an input whose second derivative is wrong without an error."""
    with contextlib.suppress(Exception):
        expected = _twice(trial, trial.pieces())
        try:
            given = _twice(trial, trial.outputs())
        except RuntimeError as error:
            if "once_differentiable" in str(error):
                return None
            given = [None] * len(expected)
        for index, pair in enumerate(zip(given, expected, strict=True)):
            if not _agree(*([one] for one in pair)):
                return index
    return None


def _twice(trial: FunctionTrial, outputs: list[torch.Tensor]) -> Gradients:
    """Differentiate a random combination of the gradients by the inputs."""
    tensors = list(trial.tensors.values())
    first = differentiate(outputs, tensors, trial.weights, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    pairs = [(g, w) for g, w in zip(first, weights, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return [None] * len(tensors)
    return differentiate([g for g, _ in pairs], tensors, [w for _, w in pairs])


def _agree(one: Sequence[torch.Tensor | None], other: Sequence[torch.Tensor | None]) -> bool:
    """Return whether gradients are the same; None counts as zero."""
    for mine, yours in zip(one, other, strict=True):
        a = torch.zeros(()) if mine is None else mine
        b = torch.zeros(()) if yours is None else yours
        if bool((a - b).abs().max() > _TOLERANCE * torch.maximum(a.abs().max(), b.abs().max())):
            return False
    return True
