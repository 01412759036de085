"""Tensors that hold NaN or infinity before a pass begins."""

from __future__ import annotations

import torch

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tensors_in import tensors_in

_MAX_SOURCES = 3


def find_non_finite_sources(subject: Subject) -> tuple[str, ...]:
    """Describe the parameters, buffers, inputs and targets that are not finite, a few words each."""
    given = tensors_in((subject.arguments, subject.keywords))
    named: list[tuple[str, torch.Tensor]] = [
        *((f"the parameter '{name}'", parameter) for name, parameter in subject.parameters.items()),
        *((f"the buffer '{name}'", buffer) for name, buffer in subject.model.named_buffers()),
        *((f"an input of shape {tuple(tensor.shape)}", tensor) for tensor in given),
        *(("the target", tensor) for tensor in tensors_in(subject.target)),
    ]
    found = [words for words, tensor in named if not bool(tensor.detach().isfinite().all())]
    return tuple(dict.fromkeys(found))[:_MAX_SOURCES]
