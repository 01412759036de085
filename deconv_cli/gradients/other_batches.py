"""Whether other data reach a parameter that this batch does not, as they do with experts and with layers left out."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import torch

from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude

_N_TRIES = 6


def find_reached_by_others(subject: Subject, backward: BackwardTrace | None) -> frozenset[str]:
    """Name the parameters that get no gradient here, and get one from the same numbers in another order.

    Random layers are drawn anew each time. Of equal parts of a list, such as experts, one that other data reach speaks
    for those that are not used here either.
    """
    given = backward.gradients if backward is not None else {}
    without = {name for name, gradient in given.items() if Magnitude.of([gradient]).is_zero}
    unused = {name for name in without if given[name] is None}
    if not without or backward is None or backward.error is not None:
        return frozenset()
    found: set[str] = set()
    for number, names in enumerate(_tries(subject, without)):
        found |= names
        if found >= without or (number >= 1 and not found):
            break
    kinds = {_kind(name) for name in found & unused}
    siblings = {name for name in unused if re.search(r"\.\d+\.", f".{name}") and _kind(name) in kinds}
    return frozenset(found | siblings)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _tries(subject: Subject, names: set[str]) -> Iterator[set[str]]:
    """Yield which of the parameters get a gradient, for one set of data after another."""
    wanted = [subject.parameters[name] for name in sorted(names)]
    for number in range(1, _N_TRIES + 1):
        change = functools.partial(_in_other_order, generator=torch.Generator().manual_seed(number))
        with subject.changed_inputs(change, target_too=False):
            try:
                loss = as_scalar(subject.run(subject.seed + number)[1])
                gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            except Exception:  # noqa: BLE001  a model may take no other data, which says nothing of its parameters
                return
        magnitudes = zip(sorted(names), [Magnitude.of([g]) for g in gradients], strict=True)
        yield {name for name, magnitude in magnitudes if not magnitude.is_zero and magnitude.is_finite}


def _in_other_order(leaf: Any, generator: torch.Generator) -> Any:  # noqa: ANN401  tensors or anything else
    """Mix the elements of a tensor, and draw whole numbers anew between its least and its largest."""
    if not isinstance(leaf, torch.Tensor) or leaf.numel() < 2 or leaf.layout is not torch.strided:
        return leaf
    if leaf.dtype in (torch.int64, torch.int32):
        low, high = int(leaf.min()), int(leaf.max())
        return torch.randint(low, high + 1, leaf.shape, generator=generator).to(leaf)
    return leaf.reshape(-1)[torch.randperm(leaf.numel(), generator=generator)].reshape(leaf.shape)
