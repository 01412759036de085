"""The doctor's report for people: a table of parameters, then every fault with its line, its reason and its cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

_MANY = 40
"""Parameters beyond which those without a fault are only counted."""


def print_findings(record: dict[str, Any], *, verbose: bool) -> None:
    """Print the report on stdout, which is the answer of this command."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    parameters = record["parameters"]
    shown = [p for p in parameters if verbose or len(parameters) <= _MANY or p["verdict"] != "OK"]
    title = f"{_clean(record['model']['name'])}: {len(parameters)} parameters, {_what_was_run(record)}"
    console.print(Text(title), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("verdict", "parameter", "shape", "‖gradient‖", "ratio", "against finite differences"):
        table.add_column(heading, overflow="fold")
    for finding in shown:
        table.add_row(*(Text(cell) for cell in _row(finding)))
    console.print(table)
    if len(shown) < len(parameters):
        console.print(
            Text(f"and {len(parameters) - len(shown)} more that are OK (--verbose lists them)"), soft_wrap=True
        )
    for fault in record["faults"]:
        _print_fault(
            console, fault["verdict"], _names(fault["parameters"]), fault["causes"], _detail(fault, parameters)
        )
    for finding in record["general"]:
        if finding["verdict"] not in {fault["verdict"] for fault in record["faults"]} or finding["verdict"] == "WRONG":
            _print_fault(console, finding["verdict"], "the model", finding["causes"], finding["detail"])
    for finding in parameters:
        if finding["verdict"] == "ZERO BY CONSTRUCTION":
            _print_fault(console, finding["verdict"], finding["name"], finding["causes"], None)
    for series in record["recurrent"]:
        console.print(Text(_told_series(series)), soft_wrap=True)
    if "fisher" in record:
        console.print(Text(_told_fisher(record["fisher"])), soft_wrap=True)
    typer.echo(record["conclusion"])


def _print_fault(console: Any, verdict: str, names: str, causes: list[dict[str, Any]], detail: str | None) -> None:  # noqa: ANN401
    from rich.text import Text

    console.print()
    console.print(Text(f"{verdict}: {_clean(names)}", style="bold"), soft_wrap=True)
    if detail:
        console.print(Text(f"  {_clean(detail)}"), soft_wrap=True)
    for cause in causes:
        source = f"    {cause['source']}" if cause["source"] else ""
        console.print(
            Text(f"  at       {_clean(_where(cause))}  {_clean(cause['operation'])}{_clean(source)}"), soft_wrap=True
        )
        console.print(Text(f"  why      {_clean(cause['why'])}"), soft_wrap=True)
        console.print(Text(f"  instead  {_clean(cause['instead'])}"), soft_wrap=True)


def _what_was_run(record: dict[str, Any]) -> str:
    loss = record["loss"]
    value = "not finite" if loss is None else f"{loss:.4g}"
    return f"loss {value} ({record['loss_name']}), {record['data']['kind']} data, {record['mode']} mode"


def _row(finding: dict[str, Any]) -> list[str]:
    comparison = finding["comparison"]
    told = ""
    if comparison is not None:
        resolution = comparison["resolution"]
        if finding["verdict"] in ("OK", "VANISHING", "EXPLODING") and resolution is not None:
            told = f"agrees, to {resolution:.1g}"
        elif comparison["autograd"] is not None and comparison["numeric"] is not None:
            bar = comparison["error_bar"] or 0.0
            told = f"{comparison['autograd']:.5g}, numeric {comparison['numeric']:.5g} ± {bar:.0g}"
    verdict = f"{finding['verdict']} (expected)" if finding["expected"] else finding["verdict"]
    shape = "×".join(str(size) for size in finding["shape"]) or "scalar"
    return [verdict, _clean(finding["name"]), shape, _short(finding["gradient_norm"]), _short(finding["ratio"]), told]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _detail(fault: dict[str, Any], parameters: list[dict[str, Any]]) -> str | None:
    details = [p["detail"] for p in parameters if p["name"] in fault["parameters"] and p["detail"]]
    return details[0] if details else None


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _where(cause: dict[str, Any]) -> str:
    if cause["file"] and cause["line"]:
        path = Path(cause["file"])
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{cause['line']}"
    return f"module '{cause['module']}'" if cause["module"] else "the model"


def _told_series(series: dict[str, Any]) -> str:
    norms = [norm or 0.0 for norm in series["norms"]]
    trend = {
        "fades": f"fades on its way back: below a millionth of its peak up to step {series['step']}",
        "explodes": f"explodes on its way back, up to step {series['step']}",
        "steady": "neither fades nor explodes",
    }[series["trend"]]
    chosen = [norms[round(n * (len(norms) - 1) / 7)] for n in range(8)] if len(norms) > 8 else norms
    told = " ".join(f"{norm:.2g}" for norm in chosen)
    return f"through the steps of {_clean(series['name'])} ({len(norms)} steps): {trend}; ‖∂loss/∂h‖ {told}"


def _told_fisher(fisher: dict[str, Any]) -> str:
    share = fisher["batch_mean_squared_trace"] / fisher["trace"] if fisher["trace"] else 0.0
    return (
        f"{fisher['kind']} Fisher diagonal, {fisher['n_samples']} samples, likelihood {fisher['likelihood']}: trace "
        f"{fisher['trace']:.4g}, in {fisher['path']}; the mean gradient of a batch of {fisher['batch_size']}, squared, "
        f"would have given {fisher['batch_mean_squared_trace']:.4g} ({share:.2g} times that)"
    )


def _clean(text: str) -> str:
    """Drop what could steer a terminal: names come from files."""
    return "".join(character if character.isprintable() else "?" for character in text)
