"""The report of `deconv check-grad` for people: a table of parameters, then every fault with its line and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.console import print_answer, printable, table_console
from deconv_cli.vocabulary import counted

if TYPE_CHECKING:
    from rich.table import Table

_MANY = 40
"""Parameters beyond which those without a fault are only counted."""


def print_findings(record: dict[str, Any], *, verbose: bool) -> None:
    """Print the report on stdout, which is the answer of this command."""
    from rich.text import Text

    from deconv_cli.gradients.findings import name_some

    console = table_console(stderr=False)

    def line(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=True)

    parameters = record["parameters"]
    shown = parameters if verbose or len(parameters) <= _MANY else [p for p in parameters if _is_worth_a_row(p)][:_MANY]
    line(record["summary"], "bold")
    line(f"{record['model']['name']}: {counted(len(parameters), record['by'])}, {_describe_run(record)}")
    if shown:
        console.print(_table(shown, record["by"]))
        line(f"ratio: ‖gradient‖ / ‖{record['by']}‖")
    if len(shown) < len(parameters):
        line(f"and {_count(p for p in parameters if p not in shown)} (--verbose lists them)")
    details = {p["name"]: p["detail"] for p in parameters if p["detail"]}
    printed = [
        (fault, name_some(fault["parameters"]), next((details[n] for n in fault["parameters"] if n in details), None))
        for fault in (*record["faults"], *record["remarks"])
    ]
    faulty = {fault["verdict"] for fault in record["faults"]} - {"WRONG"}
    printed += [(found, "the model", found["detail"]) for found in record["general"] if found["verdict"] not in faulty]
    for found, names, detail in printed:
        console.print()
        line(f"{found['verdict']}: {names}", "bold")
        for sentence in _explanation(found, detail):
            line(sentence)
    for series in record["recurrent"]:
        line(_describe_series(series))
    print_answer(record["conclusion"])


def _is_worth_a_row(finding: dict[str, Any]) -> bool:
    return finding["is_fault"] or finding["verdict"] in ("NOISY", "NOT CHECKED", "NONDIFFERENTIABLE")


def _count(findings: Iterable[dict[str, Any]]) -> str:
    """Count findings by verdict: `14 more that are OK, 36 NOT REACHED`."""
    counts = Counter(finding["verdict"] for finding in findings)
    healthy = [f"{counts.pop('OK')} more that are OK"] if "OK" in counts else []
    return ", ".join([*healthy, *(f"{n} {verdict}" for verdict, n in counts.items())])


def _explanation(found: dict[str, Any], detail: str | None) -> list[str]:
    """Write what is at fault, why, and what to write instead."""
    lines = [f"  {detail}"] if detail else []
    for cause in found["causes"]:
        source = f"    {cause['source']}" if cause["source"] else ""
        instead = cause["instead"].replace("accept this finding", f"accept it with --expect {found['verdict']}:NAME")
        lines.append(f"  at       {_where(cause)}  {cause['operation']}{source}")
        lines.append(f"  why      {cause['why']}")
        lines.append(f"  instead  {instead}")
    return lines


def _table(parameters: list[dict[str, Any]], noun: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("verdict", noun, "shape", "‖gradient‖", "ratio", "against finite differences"):
        table.add_column(heading, overflow="fold")
    for finding in parameters:
        table.add_row(*(Text(printable(cell)) for cell in _row(finding)))
    return table


def _describe_run(record: dict[str, Any]) -> str:
    loss = record["loss"]
    value = "not finite" if loss is None else f"{loss:.4g}"
    return f"loss {value} ({record['loss_name']}), {record['data']['kind']} data, {record['mode']} mode"


def _row(finding: dict[str, Any]) -> list[str]:
    comparison = finding["comparison"]
    compared = ""
    if comparison is not None:
        resolution = comparison["resolution"]
        if finding["verdict"] in ("OK", "VANISHING", "EXPLODING") and resolution is not None:
            compared = f"agrees, to {resolution:.1g}"
        elif comparison["autograd"] is not None and comparison["numeric"] is not None:
            bar = comparison["error_bar"] or 0.0
            compared = f"{comparison['autograd']:.5g}, numeric {comparison['numeric']:.5g} ± {bar:.0g}"
    verdict = f"{finding['verdict']} (expected)" if finding["expected"] else finding["verdict"]
    shape = "×".join(str(size) for size in finding["shape"]) or "scalar"
    return [verdict, finding["name"], shape, _short(finding["gradient_norm"]), _short(finding["ratio"]), compared]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _where(cause: dict[str, Any]) -> str:
    if cause["file"] and cause["line"]:
        path = Path(cause["file"])
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{cause['line']}"
    return f"module '{cause['module']}'" if cause["module"] else "the model"


def _describe_series(series: dict[str, Any]) -> str:
    norms = [norm or 0.0 for norm in series["norms"]]
    trend = {
        "fades": f"fades on its way back: below a millionth of its peak up to step {series['step']}",
        "explodes": f"explodes on its way back, up to step {series['step']}",
        "steady": "neither fades nor explodes",
    }[series["trend"]]
    chosen = [norms[round(n * (len(norms) - 1) / 7)] for n in range(8)] if len(norms) > 8 else norms
    shown = " ".join(f"{norm:.2g}" for norm in chosen)
    return f"through the steps of {series['name']} ({len(norms)} steps): {trend}; ‖∂loss/∂h‖ {shown}"
