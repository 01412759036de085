"""Losses of a prediction against data, and their slopes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.parts import LOSSES

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Of a prediction and the data, of one shape: a loss of that shape, or a number that is its mean."""

FAINT = 0.1
"""Counts that are added where the likelihood of counts is computed, which ends at zero."""


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """Give (p − t)², the loss of white Gaussian noise."""
    return (prediction - target).square()


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Give |p − t|, whose minimum hardly depends on samples that are far off."""
    return (prediction - target).abs()


def huber(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Give ½(p − t)² up to a distance of `delta` in units of the samples, and go on straight beyond.

    Source: Huber, Robust estimation of a location parameter, Annals of Mathematical Statistics 35, 1964.
    """
    distance = (prediction - target).abs()
    near = distance.clamp_max(delta)
    return near * (distance - near / 2)


def poisson(prediction: Tensor, target: Tensor) -> Tensor:
    """Give p − t + t·log(t/p) for means p and counts t with a tenth of a count added to both.

    This is the negative logarithm of the likelihood of the counts, minus its least value. Without the tenth, a pixel
    without counts would almost fix its mean, and its loss would end at zero. Below zero a parabola replaces the
    logarithm.
    """
    counts, means = target.clamp_min(0) + FAINT, prediction.clamp_min(0) + FAINT
    below = prediction.clamp_max(0) / FAINT
    logarithm = means.log() + below - below.square() / 2
    return prediction + FAINT - counts + counts * (counts.log() - logarithm)


def find_loss(words: str | Loss) -> Loss:
    """Give the loss of a name, with its number behind a colon (`huber:2.5`), or the function itself.

    Raises:
        UsageError: no such loss, or a number that it does not take.
    """
    if not isinstance(words, str):
        return words
    name, colon, text = words.partition(":")
    loss: Loss = LOSSES[name]
    if not colon:
        return loss
    names = list(inspect.signature(loss).parameters)[2:]
    if len(names) != 1:
        raise UsageError(f"loss {name} takes no number, but is '{words}'; write {name}.")
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"loss {name} takes a positive number, its {names[0]}, but is '{words}'; write {name}:1.")
    return partial(loss, **{names[0]: number})


def mean_loss(loss: Loss, prediction: Tensor, target: Tensor) -> Tensor:
    """Average a loss over the samples.

    Raises:
        UsageError: it gives something else than one number, or one for each sample.
    """
    values = loss(prediction, target)
    if not isinstance(values, Tensor) or values.shape not in (prediction.shape, ()):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise UsageError(
            f"a loss must take a prediction and data, and return a tensor of their shape {tuple(prediction.shape)} or "
            f"a single number, but returns {found}."
        )
    return values.mean()


def slope_of_loss(loss: Loss, prediction: Tensor, target: Tensor) -> Tensor:
    """Differentiate the sum of a loss by the prediction."""
    prediction = prediction.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(mean_loss(loss, prediction, target) * target.numel(), prediction)
    return slope
