"""Losses by name, synthetic targets for them, and calls of the user's own loss function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from deconv_cli.errors import UsageError
from deconv_cli.gradients.nested_tensors import tensors_in
from deconv_cli.gradients.subject import Loss
from deconv_cli.vocabulary import check_name

NAMED_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "smooth-l1": functional.smooth_l1_loss,
    "huber": functional.huber_loss,
    "cross-entropy": functional.cross_entropy,
    "nll": functional.nll_loss,
    "bce": functional.binary_cross_entropy,
    "bce-with-logits": functional.binary_cross_entropy_with_logits,
}

OF_CLASSES = ("cross-entropy", "nll")
"""Losses of outputs with an axis of classes."""


def classes_are_last(output: torch.Tensor, target: torch.Tensor | None) -> bool:
    """Return whether an output is `(B, T, classes)`, as sequence models give it, and not torch's own `(B, classes, T)`.

    A target of whole numbers of shape `(B, T)` decides. Without a target, the last of three axes holds the classes.
    """
    if output.ndim != 3:
        return False
    return target is None or (not target.is_floating_point() and target.shape == output.shape[:2])


def classes_second(output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
    """Move the axis of classes to axis 1: `(B, T, classes)` becomes `(B, classes, T)`."""
    return output.movedim(-1, 1) if classes_are_last(output, target) else output


def draw_target(name: str, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a synthetic target for an output: classes, numbers from 0 to 1 for `bce`, normal ones for other losses."""
    if name not in OF_CLASSES:
        draw = torch.rand if name in ("bce", "bce-with-logits") else torch.randn
        return draw(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    if output.ndim < 2:
        return torch.randint(0, output.shape[-1], (), generator=generator)
    output = classes_second(output, None)
    shape = (output.shape[0], *output.shape[2:])
    return torch.randint(0, output.shape[1], shape, generator=generator)


def own_loss(output: Any) -> Any:  # noqa: ANN401  whatever the model gives
    """Return the loss that a model computes itself: a single number, or the one under `loss` as in transformers.

    A plain number has left torch, which is a finding and no error. None where the model computes no loss.
    """
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(own, torch.Tensor) and own.numel() == 1:
        return own
    is_number = output.numel() == 1 if isinstance(output, torch.Tensor) else isinstance(output, int | float)
    return output if is_number else None


def projection(output: Any, _target: Any = None) -> Any:  # noqa: ANN401  whatever the model gives
    """Add up the output with fixed random weights: a loss that depends on every number of the output.

    A model that computes its loss itself keeps it, see `own_loss`.

    Raises:
        UsageError: the output holds no tensor.
    """
    own = own_loss(output)
    if own is not None:
        return own
    leaves = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors_in(output)]
    tensors = [t for t in leaves if t.is_floating_point()]
    if not tensors:
        if not leaves:
            raise UsageError(
                f"the model returns a {type(output).__name__} without any tensor; write a loss function for it."
            )
        tensors = [tensor.to(torch.get_default_dtype()) for tensor in leaves]
    generator = torch.Generator().manual_seed(7)
    terms = []
    for tensor in tensors:
        weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        terms.append((weights * tensor).sum() / max(tensor.numel(), 1) ** 0.5)
    return torch.stack(terms).sum()


def named_loss(name: str) -> Loss:
    """Return a loss by its name, for a model whose output is one tensor.

    Raises:
        UsageError: no such loss, or (when called) no tensor to apply it to.
    """
    if name == "projection":
        return projection
    compute = NAMED_LOSSES[check_name([*NAMED_LOSSES, "projection", "file.py:function"], name, "the loss")]

    def loss(output: Any, target: Any) -> torch.Tensor:  # noqa: ANN401  whatever the model gives
        if not isinstance(target, torch.Tensor):
            raise UsageError(f"the loss '{name}' needs a target; give one.")
        tensor = only_tensor(output, name)
        if target.is_floating_point():
            target = target.to(tensor.dtype)
        return compute(classes_second(tensor, target) if name in OF_CLASSES else tensor, target)

    return loss


def only_tensor(output: Any, name: str) -> torch.Tensor:  # noqa: ANN401  whatever the model gives
    """Return the tensor of an output, or the first of several, as in the tuples of some layers of torch.nn.

    Raises:
        UsageError: the output holds no tensor.
    """
    leaves = tensors_in(output)
    if not leaves:
        raise UsageError(f"the loss '{name}' needs a tensor, but the model returns a {type(output).__name__}.")
    return leaves[0]


def user_loss(function: Callable[..., Any], *, has_target: bool) -> Loss:
    """Call the user's function, or an instance of a class, with the output and the target, or the output alone.

    Raises:
        UsageError: it needs a target that is missing, or more arguments.
    """
    if isinstance(function, type):
        function = function()
    n_wanted = sum(p.default is p.empty for p in positional_parameters(function)) or 1
    if n_wanted > 2:
        raise UsageError(f"the loss must take the output and the target, but takes {n_wanted} arguments.")
    if n_wanted == 2 and not has_target:
        raise UsageError("the loss takes a target; give one.")
    is_given = n_wanted == 2 or (has_target and takes_target(function))
    return (lambda output, target: function(output, target)) if is_given else (lambda output, _: function(output))


def takes_target(function: Callable[..., Any]) -> bool:
    """Return whether a loss function, or a class of them, takes a target."""
    return len(positional_parameters(function() if isinstance(function, type) else function)) >= 2


def positional_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """List the positional parameters of a function or of a module's forward; empty where these are unknown."""
    target = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
