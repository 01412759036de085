"""Inputs as weights: what is checked then is the gradient with respect to the inputs of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from deconv_cli.errors import UsageError
from deconv_cli.gradients.subject import Subject


class InputsAsWeights(nn.Module):
    """Runs a model on inputs that are parameters of this module, under `inputs.0`, `inputs.name` and so on.

    The parameters of the model itself are not listed, so that they are not checked.

    Raises:
        UsageError: no input holds numbers that a gradient could be taken by.
    """

    def __init__(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.inputs = nn.ParameterDict()
        paths, self._spec = pytree.tree_flatten_with_path((arguments, keywords))
        self._leaves: list[Any] = []
        for path, leaf in paths:
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                name = "_".join(_name_of(key) for key in path[1:])
                self.inputs[name] = nn.Parameter(leaf.detach().clone())
                self._leaves.append(_Name(name))
            else:
                self._leaves.append(leaf)
        if not self.inputs:
            raise UsageError(
                "no input holds floating-point numbers, so there is no gradient by the inputs; check the parameters."
            )

    def named_parameters(self, *_options: Any, **_keywords: Any) -> Iterator[tuple[str, nn.Parameter]]:  # noqa: ANN401
        """List the inputs."""
        return self.inputs.named_parameters(prefix="inputs")

    def forward(self) -> Any:  # noqa: ANN401  whatever the model gives
        """Run the model."""
        leaves = [self.inputs[leaf.name] if isinstance(leaf, _Name) else leaf for leaf in self._leaves]
        arguments, keywords = pytree.tree_unflatten(leaves, self._spec)
        return self.model(*arguments, **keywords)


def with_inputs_as_weights(subject: Subject) -> Subject:
    """Turn a subject into one whose parameters are its inputs.

    Raises:
        UsageError: no input holds numbers that a gradient could be taken by.
    """
    model = InputsAsWeights(subject.model, subject.arguments, subject.keywords)
    return Subject(model, (), {}, subject.target, subject.loss, subject.seed, None, is_axis_given=True)


class _Name:
    def __init__(self, name: str) -> None:
        self.name = name


def _name_of(key: Any) -> str:  # noqa: ANN401  torch has several kinds of keys
    return str(getattr(key, "idx", getattr(key, "key", key)))
