"""The module that a script calls, copied and called again with other samples, to see whether these are mixed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from deconv_cli.gradients.batch_independence import BatchIndependence, try_batch
from deconv_cli.gradients.losses import projection
from deconv_cli.gradients.other_batches import find_reached_by_others
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.backward_trace import trace_backward


def reached_by_other_data(module: nn.Module, arguments: tuple[Any, ...]) -> frozenset[str]:
    """Name the parameters of a module that get no gradient from its last arguments, and do from other data."""
    try:
        given = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, arguments)
        subject = Subject(copy.deepcopy(module), given, {}, None, projection)
        return find_reached_by_others(subject, trace_backward(subject.run()[1], subject.trainable))
    except Exception:  # noqa: BLE001  a module may not be made to be copied, or to take other data
        return frozenset()


def try_batch_of(modules: list[nn.Module], arguments: dict[int, Any]) -> BatchIndependence:
    """Try the one module of a pass on its last arguments; nothing is found where it has no single batch for an input.

    Args:
        modules: those that the script called itself in the pass.
        arguments: what they were called with last, by the id of the module.
    """
    given: tuple[Any, ...] = arguments.get(id(modules[0]), ()) if len(modules) == 1 else ()
    if len(given) != 1 or not isinstance(given[0], torch.Tensor):
        return BatchIndependence(None)
    try:
        # The script goes on with its own module, which may keep something of each call.
        module = copy.deepcopy(modules[0])
        subject = Subject(module, (given[0].detach().clone(),), {}, None, projection)
        with subject.in_double():
            return try_batch(subject)
    except Exception as error:  # noqa: BLE001  a module may not be made to be copied, or to run in evaluation mode
        return BatchIndependence(0, doubt=str(error))
