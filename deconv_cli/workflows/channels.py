"""Channels that were restored one by one, joined: images side by side, sizes pooled, the worst of everything else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from deconv_cli.diagnostics.predicted_error import PredictedError, pool_errors
from deconv_cli.diagnostics.residual import ResidualSummary
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.solver import Choice
from deconv_cli.workflows import trust
from deconv_cli.workflows.measurement import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolve_settings import ResolvedInput


def join_channels(parts: Sequence[Reconstruction], resolution: ResolvedInput, n_axes: int) -> Reconstruction:
    """Join channels that were restored one by one: images side by side, sizes pooled, the worst of everything else."""
    first = parts[0]
    worst = next((part for part in parts if not part.is_trusted), first)
    doubtful = next((part for part in parts if part.lambda_choice and part.lambda_choice.warning), first)
    order = {False: 0, None: 1, True: 2}
    of_channels = [(number, note) for number, part in enumerate(parts, start=1) for note in part.notes]
    assessed = [part.well_posedness for part in parts if part.well_posedness is not None]
    lam = (
        first.reasons.lam
        if first.lambda_choice is None
        else f"one λ for each channel; the first was {first.reasons.lam}"
    )
    methods = [part.choice.method for part in parts]
    joined = replace(
        worst,
        image=torch.cat([part.image for part in parts], dim=-n_axes - 1),
        solution=_solution([part.solution for part in parts], n_axes),
        settings=replace(resolution.settings, lam=first.settings.lam),
        reasons=replace(first.reasons, lam=lam),
        choice=first.choice if len(set(methods)) == 1 else Choice("auto", f"channels differ: {', '.join(methods)}"),
        residual=_residual([part.residual for part in parts]),
        border=tuple(
            replace(bands[0], residual_rms=math.hypot(*(band.residual_rms for band in bands)) / math.sqrt(len(bands)))
            for bands in zip(*(part.border for part in parts), strict=True)
        ),
        spectrum=max((part.spectrum for part in parts), key=lambda spectrum: spectrum.condition),
        well_posedness=min(assessed, key=lambda found: order[found.is_well_posed]) if assessed else None,
        lambda_choice=doubtful.lambda_choice,
        predicted_error=_predicted(parts, n_axes),
        notes=(*resolution.notes, *trust.name_channels(of_channels, len(parts))),
    )
    return replace(joined, channels=tuple(_views(parts, joined, n_axes)))


def _views(parts: Sequence[Reconstruction], joined: Reconstruction, n_axes: int) -> Iterator[Reconstruction]:
    """Give the same channels as views of the joined result, so that no image is kept twice."""
    images, values = joined.image.split(1, -n_axes - 1), joined.solution.value.split(1, -n_axes - 2)
    errors = None if joined.predicted_error is None else joined.predicted_error.map.split(1, -n_axes - 1)
    for c, part in enumerate(parts):
        predicted = part.predicted_error
        if predicted is not None and errors is not None:
            predicted = replace(predicted, map=errors[c])
        solution = replace(part.solution, value=values[c])
        yield replace(part, image=images[c], solution=solution, predicted_error=predicted)


def _solution(parts: Sequence[Solution], n_axes: int) -> Solution:
    """Take the worst status and the largest numbers."""
    distances = [part.distance_bound for part in parts]
    known = [distance for distance in distances if distance is not None]
    weights = {part.weight for part in parts}
    return replace(
        next((part for part in parts if not part.status.is_success), parts[0]),
        value=torch.cat([part.value for part in parts], dim=-n_axes - 2),
        n_iterations=max(part.n_iterations for part in parts),
        certificate=max(part.certificate for part in parts),
        residual_norms=max((part.residual_norms for part in parts), key=len),
        weight=weights.pop() if len(weights) == 1 else None,
        noise_levels=tuple(level for part in parts for level in part.noise_levels),
        distance_bound=max(known) if len(known) == len(parts) else None,
    )


def _residual(parts: Sequence[ResidualSummary]) -> ResidualSummary:
    """Pool residuals of equally many samples."""
    absolute = math.hypot(*(part.absolute for part in parts))
    data = math.hypot(*(part.absolute / part.relative for part in parts if part.relative > 0))
    return ResidualSummary(
        relative=absolute / data if data > 0 else 0.0,
        absolute=absolute,
        root_mean_square=math.hypot(*(part.root_mean_square for part in parts)) / math.sqrt(len(parts)),
        per_channel=tuple(value for part in parts for value in part.per_channel),
    )


def _predicted(parts: Sequence[Reconstruction], n_axes: int) -> PredictedError | None:
    found = [part.predicted_error for part in parts if part.predicted_error is not None]
    if len(found) < len(parts):
        return None
    stacked = pool_errors(found, [1.0] * len(found), (len(found), *found[0].map.shape))
    return replace(stacked, map=torch.cat(tuple(stacked.map), dim=-n_axes - 1))


def join_diagnoses(parts: Sequence[Diagnosis], n_axes: int) -> Diagnosis:
    """Choose the channel to report of those that were restored one by one, and join the residuals."""
    numbers = range(len(parts))
    loudest = max(numbers, key=lambda c: parts[c].conditioning.noise_gain)
    channel = next((c for c in numbers if parts[c].tests.finding.is_warning), loudest)
    residual = torch.cat([part.residual for part in parts], dim=-n_axes - 1)
    return replace(parts[channel], residual=residual, channel=channel)
