"""Second derivatives: finite differences of the gradient against autograd differentiated twice."""

from __future__ import annotations

import math
import time

import torch

from deconv_cli.gradients.findings import first_line
from deconv_cli.gradients.finite_differences.directional import Comparison, Outcome
from deconv_cli.gradients.finite_differences.scalar_function import ScalarFunction, TensorGradient
from deconv_cli.gradients.finite_differences.search import compare_tensors
from deconv_cli.gradients.subject import Subject, as_scalar


def compare_second_derivatives(
    subject: Subject, names: list[str], epsilon: float, budget: float
) -> tuple[dict[str, Comparison | None], list[str]]:
    """Compare the Hessian along a random vector with finite differences of the gradient along it, in `budget` seconds.

    `epsilon` is the relative precision of the loss.

    Returns:
        The comparisons by name, and sentences on what could not be compared.
    """
    if not names:
        return {}, []
    parameters = [subject.parameters[name] for name in names]
    generator = torch.Generator().manual_seed(subject.seed + 2)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def slope(*, keep_graph: bool) -> torch.Tensor:
        loss = as_scalar(subject.run()[1])
        gradients = torch.autograd.grad(loss, parameters, create_graph=keep_graph, allow_unused=True)
        terms = [(g * v).sum() for g, v in zip(gradients, along, strict=True) if g is not None]
        return torch.stack(terms).sum()

    try:
        value = slope(keep_graph=True)
        second = (
            torch.autograd.grad(value, parameters, allow_unused=True) if value.requires_grad else [None] * len(names)
        )
    except RuntimeError as error:
        return {}, [f"second derivatives: autograd cannot differentiate twice here ({first_line(error)})"]
    tensors = [
        TensorGradient(name, parameter, torch.zeros_like(parameter) if gradient is None else gradient)
        for name, parameter, gradient in zip(names, parameters, second, strict=True)
    ]
    function = ScalarFunction(lambda: float(slope(keep_graph=False)), epsilon, time.monotonic() + budget)
    results = compare_tensors(function, tensors, seed=subject.seed + 3)
    unclear = [name for name, found in results.items() if found is None or not _is_clear(found)]
    return results, [f"{name}: its second derivative could not be compared sharply" for name in unclear]


def _is_clear(found: Comparison) -> bool:
    """Return whether there is an outcome, or zero on both sides, of which there is no relative error."""
    is_flat = found.autograd == 0 and not math.isfinite(found.resolution)
    return found.outcome is not Outcome.UNSURE or (is_flat and abs(found.numeric) <= 5 * found.error_bar)
