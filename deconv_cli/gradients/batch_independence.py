"""Whether each sample of a batch has an output of its own, and which operation mixes them if not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tensors_in import tensors_in, to_float64
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, Operation
from deconv_cli.gradients.tracing.interception import trace_forward

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class BatchIndependence:
    """What changing one sample along an axis does to the others, and the first operation whose output changes.

    The axis is None where there is none; `doubt` says why nothing could be tried.
    """

    axis: int | None
    is_mixed: bool = False
    mixer: Operation | None = None
    doubt: str | None = None


def try_batch(subject: Subject) -> BatchIndependence:
    """Replace one sample of the batch, in evaluation mode, and look whether the output of another changes."""
    axis = subject.batch_axis
    if axis is None:
        return BatchIndependence(None)
    sizes = {t.shape[axis] if t.ndim > axis else 0 for t in tensors_in((subject.arguments, subject.keywords))}
    if len(sizes) != 1 or min(sizes) < 2:
        return BatchIndependence(axis, doubt=f"the inputs do not share an axis {axis} of two samples or more")
    with subject.evaluating(), _without_graph_if_possible(subject) as before:
        if not any(t.ndim > axis and t.shape[axis] in sizes for t in tensors_in(before.output)):
            return BatchIndependence(axis, doubt=f"the output has no axis {axis} with as many samples as the inputs")
        doubt = _doubt_about_time(subject, axis)
        if doubt:
            return BatchIndependence(axis, doubt=doubt)
        with subject.changed_inputs(lambda leaf: _with_other_sample(leaf, axis), target_too=False):
            after = trace_forward(subject)
        if not _has_changed(before.output, after.output, axis, sample=0):
            return BatchIndependence(axis)
        if not subject.is_axis_given and _looks_like_time(subject, before.output, axis):
            doubt = (
                f"axis {axis} looks like time, since later outputs depend on earlier inputs but not the other way "
                "round; name the axis of the samples (batch_axis)"
            )
            return BatchIndependence(axis, doubt=doubt)
    return BatchIndependence(axis, is_mixed=True, mixer=_mixer(before, after, axis))


@contextlib.contextmanager
def _without_graph_if_possible(subject: Subject) -> Iterator[ForwardTrace]:
    """Run forward without a graph, and whatever follows, unless it asks for gradients itself, as a model of forces."""
    try:
        with torch.no_grad():
            found = trace_forward(subject)
    except RuntimeError:
        yield trace_forward(subject)
    else:
        with torch.no_grad():
            yield found


def _doubt_about_time(subject: Subject, axis: int) -> str | None:
    for name, module in subject.model.named_modules() if axis == 0 and not subject.is_axis_given else ():
        time_first = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first
        if time_first and not _is_inner(name, subject.model):
            return f"'{name}' has batch_first=False, so axis 0 may be time; name the axis of the samples (batch_axis)"
    return None


def _is_inner(name: str, model: nn.Module) -> bool:
    """Return whether a layer belongs to a larger one that turns the axes by itself."""
    parts = name.split(".")
    modules = dict(model.named_modules())
    owners = [modules[".".join(parts[:n])] for n in range(1, len(parts))]
    return any(getattr(owner, "batch_first", False) for owner in owners)


def _with_other_sample(leaf: Any, axis: int, sample: int = 0) -> Any:  # noqa: ANN401
    """Replace one sample by a rearranged copy of another, so that it stays a plausible input."""
    if not isinstance(leaf, torch.Tensor) or leaf.ndim <= axis:
        return leaf
    changed = leaf.clone()
    other = leaf.select(axis, (sample + 1) % leaf.shape[axis]).reshape(-1)
    order = torch.arange(other.numel()).flip(0)
    changed.select(axis, sample).copy_(other[order].reshape(changed.select(axis, sample).shape))
    return changed


def _changed_rows(before: torch.Tensor, after: torch.Tensor, axis: int) -> torch.Tensor:
    gap = (to_float64(before) - to_float64(after)).abs().movedim(axis, 0).reshape(before.shape[axis], -1)
    size = to_float64(before).abs().max().clamp_min(1e-30)
    return (gap.amax(dim=1) > _TOLERANCE * size) if gap.numel() else torch.zeros(before.shape[axis], dtype=torch.bool)


def _has_changed(before: Any, after: Any, axis: int, sample: int) -> bool:  # noqa: ANN401  outputs of the model
    """Return whether any sample but one has changed."""
    for one, two in zip(tensors_in(before), tensors_in(after), strict=False):
        if one.ndim > axis and one.shape == two.shape and one.shape[axis] > 1:
            rows = _changed_rows(one, two, axis)
            rows[sample] = False
            if bool(rows.any()):
                return True
    return False


def _looks_like_time(subject: Subject, before: Any, axis: int) -> bool:  # noqa: ANN401  an output of the model
    """Replace the last sample: along time nothing before it changes."""
    last = tensors_in((subject.arguments, subject.keywords))[0].shape[axis] - 1
    with subject.changed_inputs(lambda leaf: _with_other_sample(leaf, axis, last), target_too=False):
        return not _has_changed(before, subject.output(), axis, last)


def _mixer(before: ForwardTrace, after: ForwardTrace, axis: int) -> Operation | None:
    for one, two in zip(before.log.tensors, after.log.tensors, strict=False):
        if one.name == two.name and _has_changed(one.tensor, two.tensor, axis, sample=0):
            return one.operation
    return None
