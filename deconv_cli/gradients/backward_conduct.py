"""What a hand-written Function does beside giving gradients: writes to what is not its own, and second derivatives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch.autograd.function import FunctionCtx
from torch.utils import _pytree as pytree

from deconv_cli.gradients.backward_mistakes import Mistake
from deconv_cli.gradients.function_trial import FunctionTrial, Gradients, differentiate
from deconv_cli.gradients.tensors_in import real

_TOLERANCE = 1e-6


def find_writes(trial: FunctionTrial) -> tuple[Mistake, int] | None:
    """Find that forward writes to an input and says nothing of it, or backward to what it reads.

    Returns:
        The mistake, and the position of the input among the arguments; -1 where it is none.
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
    """Find an input whose gradient changes when forward is called once more before backward; its index."""
    outputs = trial.outputs()
    with contextlib.suppress(Exception):
        trial.moved().outputs()
    later = differentiate(outputs, list(trial.tensors.values()), trial.weights)
    pairs = enumerate(zip(trial.given, later, strict=True))
    return next((index for index, (one, other) in pairs if not _agree([one], [other])), None)


@contextlib.contextmanager
def _noting_dirty() -> Iterator[list[torch.Tensor]]:
    """Note what a Function marks as written to."""
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
    """Find an input by way of which the second derivative is wrong without an error; its index among the tensors."""
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
    """Differentiate the gradients, weighed at random, by the inputs."""
    tensors = list(trial.tensors.values())
    first = differentiate(outputs, tensors, trial.weights, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    pairs = [(g, w) for g, w in zip(first, weights, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return [None] * len(tensors)
    return differentiate([g for g, _ in pairs], tensors, [w for _, w in pairs])


def _agree(one: Sequence[torch.Tensor | None], other: Sequence[torch.Tensor | None]) -> bool:
    """Return whether gradients are the same; one that is not given counts as zero."""
    for mine, yours in zip(one, other, strict=True):
        a = torch.zeros(()) if mine is None else mine
        b = torch.zeros(()) if yours is None else yours
        if bool((a - b).abs().max() > _TOLERANCE * torch.maximum(a.abs().max(), b.abs().max())):
            return False
    return True
