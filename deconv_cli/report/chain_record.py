"""A finished run of `deconv invert --layers`: a chain of layers that was undone, and the same as a JSON object."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.report.record import SCHEMA, Record
from deconv_cli.report.run import Environment, InputFile, OutputFile
from deconv_cli.report.run_record import describe_environment
from deconv_cli.workflows.chain import ChainInversion


@dataclass(frozen=True)
class ModelInput:
    """Where a chain came from: the file with the model or its weights, the code that was named, and the layers."""

    path: str
    kind: str
    sha256: str
    code: str | None
    layers: str


@dataclass(frozen=True, eq=False)
class ChainRun:
    """A finished run; `rerun` is the command line that makes the same again."""

    source: InputFile
    model: ModelInput
    output: OutputFile
    inversion: ChainInversion
    notes: tuple[str, ...]
    environment: Environment
    rerun: str


def describe_chain_run(run: ChainRun) -> Record:
    """Write a run as a JSON object."""
    result, solution = run.inversion, run.inversion.solution
    return {
        "schema": SCHEMA,
        "command": "invert",
        "inputs": [{name: value for name, value in vars(run.source).items() if name != "is_picture"}],
        "model": dict(vars(run.model)),
        "layers": [dict(vars(layer)) for layer in result.layers],
        "lambda": result.lam,
        "penalty": result.penalty,
        "objective": solution.objective,
        "solver": {
            "method": result.method.name.lower(),
            "description": result.method.value,
            "status": solution.status.name.lower(),
            "message": solution.ending,
            "iterations": solution.n_iterations,
            "certificate": solution.certificate,
        },
        "relative_residual": result.relative_residual,
        "determined": dict(vars(result.determined)),
        "is_trusted": not result.doubts,
        "doubts": [{"reason": doubt.reason.value, "sentence": doubt.sentence} for doubt in result.doubts],
        "output": dict(vars(run.output)),
        "notes": list(run.notes),
        **describe_environment(run.environment),
        "rerun": run.rerun,
    }
