"""`deconv check-grad --run train.py`: the script's own model, data, loss and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.errors import UsageError

if TYPE_CHECKING:
    from deconv_cli.gradients.findings import GradientReport

_OF_OTHER_MODELS = (
    *("model", "data", "loss", "batch_size", "input_shape", "target_shape", "seed", "init", "allow_global"),
    *("trust_file", "mode", "batch_axis", "second_order", "wrt"),
)


def refuse_idle_for_script(typed: frozenset[str], arguments: list[str]) -> None:
    """Refuse what a script settles itself, and what only a script takes.

    Raises:
        UsageError: for the first option that would be ignored.
    """
    if "run" not in typed:
        if arguments:
            raise UsageError(f"there is one model file at most, but '{arguments[0]}' came too; leave it out.")
        if "step" in typed:
            raise UsageError("--step counts the backward passes of a script, but there is no --run; leave it out.")
        return
    for name in _OF_OTHER_MODELS:
        if name in typed:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for models that are named; with --run the script settles it; leave it out.")


def check_script_at_prompt(
    path: Path, arguments: list[str], *, step: int, budget: float, show: Callable[[str], None]
) -> tuple[GradientReport, dict[str, Any]]:
    """Run a script and check it; returns the report, and what is to be said of model, loss and data.

    Raises:
        UsageError: no such script, or it fails before it trains.
    """
    from deconv_cli.gradients.training.script import check_script

    if not path.is_file():
        raise UsageError(f"--run must name a Python script, but there is no file '{path}'.")
    report = check_script(path, arguments, step=step, budget=budget, on_progress=show)
    header = {
        "model": {"name": str(path), "kind": "script", "sha256": None, "class": None, "code": str(path)},
        "mode": "the script's own",
        "loss_name": f"backward pass {step}",
        "data": {"kind": "the script's own", "inputs": [], "seed": None},
    }
    return report, header
