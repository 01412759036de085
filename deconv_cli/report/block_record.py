"""A run over blocks, planned or finished, as one JSON document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deconv_cli.blocks.block_reconstruction import BlockReconstruction
from deconv_cli.blocks.block_run import BlockRun
from deconv_cli.blocks.block_task import BlockTask
from deconv_cli.blocks.sampled_error import SampledError
from deconv_cli.report.reconstruction_record import describe_predicted_error
from deconv_cli.report.record import SCHEMA, Record
from deconv_cli.report.run import Run
from deconv_cli.report.run_record import describe_environment, describe_kernel


@dataclass(frozen=True, eq=False)
class BlockInvertRun(Run):
    """A finished run of `deconv invert` over blocks.

    `spacing` holds the distances of neighboring samples along the axes of space, in micrometers, where they are known.
    """

    reconstruction: BlockReconstruction
    spacing: tuple[float, ...] | None = None

    @property
    def task(self) -> BlockTask:
        """What was done to each block: it knows the input and the output."""
        return self.reconstruction.task


def describe_block_run(run: BlockInvertRun) -> Record:
    """Write a run as a JSON object; of a file of any size the samples have no hash."""
    return {
        "schema": SCHEMA,
        "command": "invert",
        "inputs": [_describe_source(run.task)],
        "kernel": describe_kernel(run.kernel),
        **run.reconstruction.record,
        "predicted_error": _describe_error(run.reconstruction.expected_error),
        "output": _describe_target(run.task),
        "notes": list(run.notes),
        **describe_environment(run.environment),
        "rerun": run.rerun,
    }


def describe_block_plan(run: BlockRun, n_done: int | None = None) -> Record:
    """Write what would be done as a JSON object; or of a share of it, of which so many blocks are done."""
    lams = run.task.plan.choices.lams
    return {
        "schema": SCHEMA,
        "command": "invert",
        "dry_run": n_done is None,
        "n_done": n_done or 0,
        "inputs": [_describe_source(run.task)],
        "lambda": lams[0] if len(lams) == 1 else list(lams) or None,
        "weight": run.task.plan.choices.weight,
        "iterations": run.task.plan.choices.iterations,
        "plan": run.task.as_record(),
        "output": {**_describe_target(run.task), "bytes": run.task.target.n_bytes},
    }


def _describe_error(expected: SampledError | None) -> Record | None:
    """Describe the error to be expected, and what it was found on."""
    if expected is None:
        return None
    return {**describe_predicted_error(expected), "sampled_from": expected.pieces}


def _describe_source(task: BlockTask) -> dict[str, Any]:
    """Describe the input; all of its bytes were not read for a hash."""
    source = task.problem.source
    return {
        "path": source.spelled_path,
        "shape": list(source.shape),
        "axes": task.problem.layout.axes,
        "dtype": source.dtype,
        "sha256": None,
        "fingerprint": source.fingerprint(),
    }


def _describe_target(task: BlockTask) -> dict[str, Any]:
    target = task.target
    return {"path": target.spelled_path, "shape": list(target.shape), "axes": target.axes, "dtype": target.dtype}
