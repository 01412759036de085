"""The model on other data: whether samples of a batch mix, and whether other data reach an unused parameter."""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.nested_tensors import tensors_in, to_float64
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude, differentiate
from deconv_cli.gradients.tracing.code_location import Operation
from deconv_cli.gradients.tracing.interception import trace_forward
from deconv_cli.gradients.tracing.operations import ALONG_EDGES

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class BatchIndependence:
    """Whether changing one sample along an axis changes the outputs of others: the first operation that mixes them.

    The axis is None without an axis of samples; `doubt` says why it is not known whether samples mix.
    """

    axis: int | None
    mixer: Operation | None = None
    doubt: str | None = None


def try_batch(subject: Subject) -> BatchIndependence:
    """Replace one sample of the batch, in evaluation mode, and check whether the output of another changes."""
    axis = subject.batch_axis
    if axis is None:
        return BatchIndependence(None)
    sizes = {t.shape[axis] if t.ndim > axis else 0 for t in tensors_in((subject.arguments, subject.keywords))}
    if len(sizes) != 1 or min(sizes) < 2:
        return BatchIndependence(axis, doubt=f"the inputs do not share an axis {axis} of two samples or more")
    with subject.evaluating():
        before = subject.output()
        if not any(t.ndim > axis and t.shape[axis] in sizes for t in tensors_in(before)):
            return BatchIndependence(axis, doubt=f"the output has no axis {axis} with as many samples as the inputs")
        is_certain = subject.is_axis_given or _drops_the_next_axis(subject, before)
        doubt = None if is_certain else _layer_with_time_first(subject.model, axis)
        if doubt:
            return BatchIndependence(axis, doubt=doubt)
        if _largest_change(before, subject.output(), axis, sample=0):
            return BatchIndependence(axis, doubt="the output differs from run to run")
        with _other_sample(subject, axis):
            change = _largest_change(before, subject.output(), axis, sample=0)
        if change <= _TOLERANCE:
            return BatchIndependence(axis)
        mixer, last = _mixer(subject, axis), max(sizes) - 1
        if mixer is None:
            doubt = (
                f"when one sample changes, the outputs of others change by {change:.1g}, though no operation mixes "
                "them; a condition on all samples, such as the end of an iteration, does that"
            )
            return BatchIndependence(axis, doubt=doubt)
        with _other_sample(subject, axis, last):  # along time nothing before the last step changes
            is_time = _largest_change(before, subject.output(), axis, last) <= _TOLERANCE
        is_graph = mixer.bare_name in ALONG_EDGES and not _runs_on_half(subject, axis)
    if is_certain or not (is_time or is_graph):
        return BatchIndependence(axis, mixer)
    meaning = f"the nodes of a graph, which {mixer.label} mixes, since the model does not run on half of them"
    if is_time:
        meaning = "time, since later outputs depend on earlier inputs but not the other way round"
    return BatchIndependence(axis, doubt=f"axis {axis} may be {meaning}; name the axis of the samples (batch_axis)")


def _runs_on_half(subject: Subject, axis: int) -> bool:
    def half(leaf: Any) -> Any:  # noqa: ANN401  tensors or anything else
        is_long = isinstance(leaf, torch.Tensor) and leaf.ndim > axis
        return leaf.narrow(axis, 0, leaf.shape[axis] // 2) if is_long else leaf

    with subject.changed_inputs(half, target_too=False), contextlib.suppress(Exception):
        subject.output()
        return True
    return False


def _drops_the_next_axis(subject: Subject, output: Any) -> bool:  # noqa: ANN401  an output of the model
    """Return whether axis 0 certainly counts samples: of the first two axes, the output keeps only this one."""
    inputs = tensors_in((subject.arguments, subject.keywords))
    if subject.batch_axis != 0 or any(tensor.ndim < 3 for tensor in inputs):
        return False
    first, second = inputs[0].shape[:2]
    given = [*tensors_in(output), *tensors_in(subject.target)]
    return 1 < second != first and all(first in t.shape[:1] and second not in t.shape for t in given)


def _layer_with_time_first(model: nn.Module, axis: int) -> str | None:
    """Name a layer of torch that reads axis 0 as time, unless a layer around it turns the axes."""
    modules = dict(model.named_modules())
    for name, module in modules.items() if axis == 0 else ():
        if not isinstance(module, nn.RNNBase | nn.MultiheadAttention) or module.batch_first:
            continue
        parts = name.split(".")
        owners = [modules[".".join(parts[:n])] for n in range(1, len(parts))]
        if not any(getattr(owner, "batch_first", False) for owner in owners):
            return f"'{name}' has batch_first=False, so axis 0 may be time; name the axis of the samples (batch_axis)"
    return None


def _other_sample(subject: Subject, axis: int, sample: int = 0) -> contextlib.AbstractContextManager[None]:
    """Replace one sample for a while by a rearranged copy of another, which is a plausible input."""

    def changed(leaf: Any) -> Any:  # noqa: ANN401  tensors or anything else
        if not isinstance(leaf, torch.Tensor) or leaf.ndim <= axis:
            return leaf
        copied = leaf.clone()
        other = leaf.select(axis, (sample + 1) % leaf.shape[axis]).reshape(-1).flip(0)
        copied.select(axis, sample).copy_(other.reshape(copied.select(axis, sample).shape))
        return copied

    return subject.changed_inputs(changed, target_too=False)


def _largest_change(before: Any, after: Any, axis: int, sample: int) -> float:  # noqa: ANN401  outputs of the model
    """Measure the change of all other samples, relative to the largest number.

    Along other axes of the same length a sample meets the others in pairs, which may change with it.
    """
    changes = [0.0]
    for one, two in zip(tensors_in(before), tensors_in(after), strict=False):
        if one.ndim <= axis or one.shape != two.shape or one.shape[axis] < 2 or not one.numel():
            continue
        gap = (to_float64(one) - to_float64(two)).abs().nan_to_num(nan=0.0, posinf=0.0)
        for other, length in enumerate(one.shape):
            if length == one.shape[axis]:
                gap.select(other, sample).zero_()
        largest = to_float64(one).abs().nan_to_num(nan=0.0).max()
        changes.append(float(gap.max() / largest.clamp_min(1e-30)))
    return max(changes)


def _mixer(subject: Subject, axis: int) -> Operation | None:
    before = trace_forward(subject, keep_tensors=True)
    with _other_sample(subject, axis):
        after = trace_forward(subject, keep_tensors=True)
    for (name, operation, _, one), (other_name, _, _, two) in zip(before.computed, after.computed, strict=False):
        if name == other_name and _largest_change(one, two, axis, sample=0) > _TOLERANCE:
            return operation
    return None


_MAX_TRIES = 6

_NOISE = 1e-7
"""A smaller gradient, beside the loss, may be the rounding error of gradients that cancel."""


def find_reached_by_others(subject: Subject, backward: BackwardTrace) -> frozenset[str]:
    """Name the parameters that get no gradient here, but get one from the same numbers in another order.

    Each try draws new random numbers. If other data reach one of several equal parts, such as experts, its unused
    siblings count as reached too.
    """
    unused = {name for name, gradient in backward.gradients.items() if gradient is None}
    without = unused | {name for name, found in backward.magnitudes.items() if found.is_zero}
    if not without or not backward.leaf_of or backward.error is not None:
        return frozenset()
    found: set[str] = set()
    for number in range(1, _MAX_TRIES + 1):
        found |= _reached(subject, without, number)
        if found >= without or (number > 1 and not found):
            break
    kinds = {_kind(name) for name in found & unused}
    siblings = {name for name in unused if re.search(r"\.\d+\.", f".{name}") and _kind(name) in kinds}
    return frozenset(found | siblings)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _reached(subject: Subject, names: set[str], number: int) -> set[str]:
    """Find the parameters that get a gradient from shuffled data; none if the model refuses these data."""
    wanted = {name: subject.parameters[name] for name in sorted(names)}
    change = functools.partial(_shuffled, generator=torch.Generator().manual_seed(number))
    with subject.changed_inputs(change, target_too=False):
        try:
            loss = as_scalar(subject.run(subject.seed + number)[1])
            gradients = differentiate(loss, wanted)
        except Exception:  # noqa: BLE001  a model that refuses other data says nothing about its parameters
            return set()
    noise = _NOISE * abs(float(loss.detach()))
    magnitudes = {name: Magnitude.of([gradient]) for name, gradient in gradients.items()}
    return {name for name, found in magnitudes.items() if found.is_finite and (found.largest or 0.0) > noise}


def _shuffled(leaf: Any, generator: torch.Generator) -> Any:  # noqa: ANN401  tensors or anything else
    """Shuffle the elements of a tensor, or draw new whole numbers between its minimum and its maximum."""
    if not isinstance(leaf, torch.Tensor) or leaf.numel() < 2 or leaf.layout is not torch.strided:
        return leaf
    if leaf.dtype in (torch.int64, torch.int32):
        low, high = int(leaf.min()), int(leaf.max())
        return torch.randint(low, high + 1, leaf.shape, generator=generator).to(leaf)
    return leaf.reshape(-1)[torch.randperm(leaf.numel(), generator=generator)].reshape(leaf.shape)
