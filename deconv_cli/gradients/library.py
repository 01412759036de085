"""The doctor as a function: the twin of `deconv check-grad`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from deconv_cli.gradients.examination import DEFAULT_BUDGET, examine
from deconv_cli.gradients.losses import projection, user_loss
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.verdicts import Examination


def check_gradients(
    model: nn.Module,
    *inputs: Any,  # noqa: ANN401
    loss: Callable[..., Any] | None = None,
    target: Any = None,  # noqa: ANN401
    seed: int = 0,
    batch_axis: int | None = 0,
    budget: float = DEFAULT_BUDGET,
    second_order: bool = False,
    **keywords: Any,  # noqa: ANN401
) -> Examination:
    """Say for every parameter of a model whether its gradient arrives and is right, and which line is to blame if not.

    Args:
        model: in the mode in which it is to be checked; it is left as it was.
        *inputs: positional inputs of forward.
        loss: called with the output and the target, or with the output alone, and gives a scalar. None weighs every
            number of the output with a fixed random weight; a model that gives a single number has its own loss.
        target: given to the loss.
        seed: set before every run, for random layers.
        batch_axis: which axis of inputs and outputs counts the samples, None where there is none.
        budget: seconds for finite differences; what they do not reach is listed.
        second_order: also compare second derivatives.
        **keywords: inputs of forward by name.

    Returns:
        The examination: `parameters` holds a finding for each, `faults()` gathers them by cause.

    Raises:
        UsageError: the model cannot be run on these inputs, or has no parameters.
    """
    value = projection if loss is None else user_loss(loss, has_target=target is not None)
    subject = Subject(model, inputs, keywords, target, value, seed, batch_axis)
    return examine(subject, budget=budget, second_order=second_order)
