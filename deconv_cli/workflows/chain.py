"""Undo a chain of layers: from an activation of a network back to what the network was shown."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from deconv_cli.diagnostics.determined_share import DeterminedShare
from deconv_cli.errors import UsageError
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.solvers.iteration_log import StoppingRule, default_tolerance
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import Size, format_percent
from deconv_cli.workflows.arithmetic import check_image, pick_dtype
from deconv_cli.workflows.chain_inverse import ChainInverse, ChainMethod, Undone
from deconv_cli.workflows.chain_parts import Layers, PartKind, input_shape_of, list_parts
from deconv_cli.workflows.trust import MAX_RELATIVE_RESIDUAL, Doubt, DoubtReason, doubt_solver

TAKEN = ("defaults", "input_size", "lam", "penalty", "tolerance", "max_iterations", "dtype")
"""The settings that the inversion of a chain uses."""

MAX_AMPLIFICATION = 100.0
"""An estimate that is so many times as large as the data need is doubted where they do not determine it."""
FULL_SHARE = 0.999
"""From this share on the data determine an input."""


@dataclass(frozen=True)
class ChainLayer:
    """One layer as it was undone: its name, torch's words for it, and what became of it."""

    name: str
    description: str
    treatment: str


@dataclass(frozen=True, eq=False)
class ChainInversion:
    """An estimate of what a chain of layers turned into the data.

    Attributes:
        image: the estimate, shape `(C, *size)`, or `(B, C, *size)` where the data have a batch axis.
        solution: how it was obtained, for all images together: the worst status and certificate, the most iterations.
        layers: the chain, in order, with what became of each layer.
        method: how it was undone; of several images the most laborious way.
        lam: λ of the penalty λσ²max‖Lx‖², with the largest singular value of the derivative at zero.
        penalty: the name of L.
        residual: y − f(x̂) through the chain itself, of the shape of the data.
        relative_residual: ‖f(x̂) − y‖ / ‖y‖, the largest of the batch.
        determined: how much of the input the data determine around the estimate, the least of the batch.
        amplification: how many times larger the estimate is than the data need, the largest of the batch.
        notes: what else to know, a sentence each.
    """

    image: Tensor
    solution: Solution
    layers: tuple[ChainLayer, ...]
    method: ChainMethod
    lam: float
    penalty: str
    residual: Tensor
    relative_residual: float
    determined: DeterminedShare
    amplification: float
    notes: tuple[str, ...]

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """Why not to trust the estimate as it is; empty where nothing speaks against it."""
        found = doubt_solver(self.solution)
        if self.relative_residual > MAX_RELATIVE_RESIDUAL and self.lam == 0:
            found.append(
                Doubt(
                    DoubtReason.RESIDUAL,
                    f"the chain makes something else of the estimate: {format_percent(self.relative_residual)} of the "
                    "data are left; check that the data are the output of these layers in evaluation mode",
                )
            )
        if self.amplification > MAX_AMPLIFICATION and self.determined.share < FULL_SHARE:
            found.append(
                Doubt(
                    DoubtReason.AMPLIFICATION,
                    f"the estimate is {self.amplification:.2g} times as large as the data need, in directions that "
                    "they leave open; use λ > 0, which keeps these small",
                )
            )
        return tuple(found)


def invert_chain(
    y: Tensor,
    layers: Layers,
    *,
    settings: ReconstructionSettings | None = None,
    time_limit: float | None = None,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,  # noqa: ANN401
) -> ChainInversion:
    """Estimate the images that a chain of layers turned into `y`, and say how much of them `y` determines.

    Layers act in evaluation mode, each image by itself. The arithmetic runs in float64 unless `dtype` says otherwise.

    Args:
        y: the output of the last layer, shape `(C, *size)` or `(B, C, *size)`.
        layers: a module, of which an `nn.Sequential` is opened; or modules in the order in which they act, with names
            or without. What is none of torch's affine layers or increasing activations may be any function that torch
            differentiates.
        settings: how to undo it; or give its fields one by one.
        time_limit: seconds after which iterations end, with the best estimate until then; `None` for none.
        progress: is called after every step with the iterations so far and the certificate, or the relative residual.
        options: those fields of `ReconstructionSettings` that `TAKEN` lists; λ is 0 if not given. `input_size` are the
            pixels of the input, or channels and pixels; by default the stride times the size of `y`, if that is
            possible, else the smallest possible size.

    Raises:
        ShapeError: no input of the chain gives data of this shape.
        UsageError: settings of no use here, or layers that torch does not differentiate.
        MalformedInputError: data that are not finite.
    """
    if settings is not None and options:
        raise UsageError(f"settings were given as a record and as {next(iter(options))} too; use one or the other.")
    settings = ReconstructionSettings.of(**options) if settings is None else settings
    lam = _checked(settings)
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"time_limit must be a positive number of seconds, but is {time_limit!r}.")
    check_image(y, "the output to invert")
    wide = torch.float32 if y.device.type == "mps" else torch.float64
    data = y.detach().to(pick_dtype(settings.dtype or wide, y, y.device))
    eps = torch.finfo(y.dtype if y.is_floating_point() else data.dtype).eps
    rule = StoppingRule(settings.tolerance or default_tolerance(data.dtype), settings.max_iterations)
    chain = ChainInverse(list_parts(layers, data, eps), rule, lam, settings.penalty or "identity", eps, progress)
    shape = input_shape_of(chain.parts, tuple(y.shape), settings.input_size)
    start = data.new_zeros(shape)
    batch = data.shape[: data.ndim - chain.output_of(start).ndim]
    found = _one_by_one(chain, data.reshape(-1, *data.shape[len(batch) :]), start, time_limit)
    images = [one.solution.value for one in found]
    made = torch.stack([chain.output_of(image) for image in images])
    return ChainInversion(
        image=torch.stack(images).reshape(*batch, *shape),
        solution=_worst([one.solution for one in found]),
        layers=_describe(chain, found),
        method=max((one.method for one in found), key=list(ChainMethod).index),
        lam=lam,
        penalty=chain.penalty,
        residual=data - made.reshape(data.shape),
        relative_residual=max(one.relative_residual for one in found),
        determined=min((one.determined for one in found), key=lambda one: one.share),
        amplification=max(one.amplification for one in found),
        notes=_notes(found),
    )


def _one_by_one(chain: ChainInverse, images: Tensor, start: Tensor, time_limit: float | None) -> list[Undone]:
    """Undo the chain for each image, with a share of the time for each; what one leaves the others have."""
    found, end = [], math.inf if time_limit is None else time.monotonic() + time_limit
    for n_done, image in enumerate(images):
        now = time.monotonic()
        deadline = now + (end - now) / (len(images) - n_done)
        found.append(replace(chain, rule=replace(chain.rule, deadline=deadline)).undo(image, start))
    return found


def chain_input_shape(y: Tensor, layers: Layers, input_size: Size | None = None) -> Size:
    """Find the shape `(C, *size)` of the images that `invert_chain` would give, without computing them."""
    check_image(y, "the output to invert")
    return input_shape_of(list_parts(layers, y.new_zeros(()).double(), 1.0), tuple(y.shape), input_size)


def _checked(settings: ReconstructionSettings) -> float:
    """Refuse settings of no use to chains; gives λ."""
    idle = [f.name for f in fields(settings) if f.name not in TAKEN and getattr(settings, f.name) != f.default]
    if idle:
        raise UsageError(f"{idle[0]} has no use for a chain of layers; leave it out.")
    if isinstance(settings.lam, str | tuple):
        raise UsageError(f"lambda must be zero or a positive number for a chain of layers, but is {settings.lam!r}.")
    return settings.lam or 0.0


def _worst(solutions: list[Solution]) -> Solution:
    """Describe how all images together went: by the worst status and certificate, and the most iterations."""
    worst = max(solutions, key=lambda found: (not found.status.is_success, found.certificate))
    return replace(worst, n_iterations=max(found.n_iterations for found in solutions))


def _describe(chain: ChainInverse, found: list[Undone]) -> tuple[ChainLayer, ...]:
    """Say of each layer what became of it."""
    layers = []
    for part in chain.parts:
        counts = [one.bounds_of[part] for one in found if part in one.bounds_of]
        treatment = part.kind.value
        if counts:
            n_bounds, n_values = (sum(numbers) for numbers in zip(*counts, strict=True))
            treatment = "undone by its inverse"
            if n_bounds:
                treatment += f"; {format_percent(n_bounds / n_values, 3)} of its values are bounds alone"
        elif part.kind is not PartKind.AFFINE:
            treatment += ", solved with the whole"
        layers.append(ChainLayer(part.name, part.description, treatment))
    return tuple(layers)


def _notes(found: list[Undone]) -> tuple[str, ...]:
    n_impossible = sum(one.n_impossible for one in found)
    if not n_impossible:
        return ()
    return (f"{n_impossible} values are beyond what their layer can give, and were taken as at the end of its range",)
