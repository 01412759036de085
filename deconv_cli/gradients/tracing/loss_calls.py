"""What losses are given: probabilities where they want logits, shapes that broadcast to more than was meant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from deconv_cli.gradients.tracing.code_location import CodeLocation


class Misuse(StrEnum):
    """What is wrong with what a loss is given."""

    PROBABILITIES = "probabilities for logits"
    NOT_LOG = "no log-probabilities"
    ONE_CLASS = "one class"
    BROADCAST = "broadcast"
    OTHER_AXIS = "normalized along another axis"
    MIXED = "classes taken apart by a view"
    NOT_SIGNS = "0 and 1 for -1 and 1"


@dataclass(frozen=True)
class LossCall:
    """A call that is misused: its function, its line, and the shapes of its two tensors."""

    name: str
    location: CodeLocation
    misuse: Misuse
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


_OF_LOGITS = ("cross_entropy", "binary_cross_entropy_with_logits")
_OF_CLASSES = ("cross_entropy", "nll_loss")
_OF_LOGARITHMS = ("nll_loss", "kl_div")
_OF_DIFFERENCES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_DIFFERENCES = ("sub", "rsub", "__sub__", "__rsub__", "subtract")
_OF_SIGNS = {"cosine_embedding_loss": 2, "margin_ranking_loss": 2, "hinge_embedding_loss": 1, "soft_margin_loss": 1}
"""Losses whose targets are -1 and 1, and the place of the target among their arguments."""

_SOFTMAX = ("softmax", "log_softmax")
WATCHED = frozenset({*_OF_LOGITS, *_OF_LOGARITHMS, *_OF_DIFFERENCES, *_DIFFERENCES, *_OF_SIGNS, *_SOFTMAX})
"""Functions whose arguments are looked at."""

_VIEWS = ("View", "Unsafe", "Squeeze", "Unsqueeze", "Transpose", "Permute", "Select", "Reshape", "TBackward", "Slice")
_MAX_VIEWS = 6
_PROBABILITIES = ("SoftmaxBackward0", "SigmoidBackward0")
_ROUNDING = 1e-4
_HALF_ROUNDING = 2e-2
"""The same for sums of numbers of 16 bits."""


def find_misuse(name: str, arguments: Any, keywords: dict[str, Any]) -> Misuse | None:  # noqa: ANN401
    """Return what is wrong with the arguments of a watched function, None where nothing is."""
    if name in _SOFTMAX:
        axis = keywords.get("dim", arguments[1] if len(arguments) > 1 else None)
        is_single = isinstance(axis, int) and arguments[0].ndim and arguments[0].shape[axis] == 1
        return Misuse.ONE_CLASS if is_single else None
    if name in _OF_SIGNS:
        place = _OF_SIGNS[name]
        target = keywords.get("target", arguments[place] if len(arguments) > place else None)
        return Misuse.NOT_SIGNS if isinstance(target, torch.Tensor) and _are_zeros_and_ones(target) else None
    tensors = [argument for argument in arguments[:2] if isinstance(argument, torch.Tensor)]
    if len(tensors) < 2 or not tensors[0].numel() or not tensors[1].numel():
        return None
    given, target = tensors
    if name in _OF_DIFFERENCES or name in _DIFFERENCES:
        return Misuse.BROADCAST if _broadcasts_by_accident(given, target) else None
    if name == "cross_entropy" and given.ndim >= 2 and given.shape[1] == 1:
        return Misuse.ONE_CLASS
    if name in _OF_CLASSES and _mixes_classes(given):
        return Misuse.MIXED
    if name in _OF_LOGITS:
        is_given = _maker(given) in _PROBABILITIES or (name == "cross_entropy" and _sums_to_one(given))
        return Misuse.PROBABILITIES if is_given else None
    if _maker(given) in _PROBABILITIES or bool((given.detach() > _ROUNDING).any()):
        return Misuse.NOT_LOG
    is_normalized = name == "nll_loss" and _maker(given) in ("LogSoftmaxBackward0", "LogBackward0")
    return Misuse.OTHER_AXIS if is_normalized and not _sums_to_one(given.exp()) else None


def _mixes_classes(given: torch.Tensor) -> bool:
    """Return whether a view reads numbers of several places as the classes of one.

    It does where its classes lie along axis 1 with another stride than the one axis of that size has in what is viewed,
    and inside of no other axis.
    """
    node, n_classes = given.grad_fn, given.shape[1] if given.ndim > 1 else 0
    before = getattr(node, "_saved_self_sym_sizes", ())
    if (
        n_classes < 2
        or not type(node).__name__.startswith(("View", "UnsafeView", "Reshape"))
        or n_classes not in before[1:]
    ):
        return False
    stride = math.prod(given.shape[2:])
    strides = [math.prod(before[axis + 1 :]) for axis in range(len(before))]
    pairs = zip(strides, before, strict=True)
    return not any(stride % own == 0 and (own * size) % (stride * n_classes) == 0 for own, size in pairs)


def _are_zeros_and_ones(target: torch.Tensor) -> bool:
    return bool((target == 0).any()) and bool(((target == 0) | (target == 1)).all())


def _broadcasts_by_accident(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether (N, 1) meets (N,): N × N numbers of which N were meant, between a prediction and a target."""
    if one.ndim == other.ndim or one.requires_grad == other.requires_grad:
        return False
    longer, shorter = (one, other) if one.ndim > other.ndim else (other, one)
    is_column = longer.ndim == shorter.ndim + 1 and longer.shape[-1] == 1
    return is_column and shorter.ndim >= 1 and longer.shape[:-1] == shorter.shape and shorter.shape[-1] > 1


def _maker(tensor: torch.Tensor) -> str:
    """Name the node that made the values of a tensor, past views of them."""
    node = tensor.grad_fn
    for _ in range(_MAX_VIEWS):
        is_view = node is not None and type(node).__name__.startswith(_VIEWS) and node.next_functions
        if node is None or not is_view:
            break
        node = node.next_functions[0][0]
    return type(node).__name__


def _sums_to_one(scores: torch.Tensor) -> bool:
    """Return whether the classes of every sample look like probabilities."""
    values, axis = scores.detach().double(), min(1, scores.ndim - 1)
    if values.shape[axis] < 2 or bool((values < 0).any()):
        return False
    rounding = _ROUNDING if scores.element_size() > 2 else _HALF_ROUNDING
    return bool(((values.sum(axis) - 1).abs() < rounding).all())
