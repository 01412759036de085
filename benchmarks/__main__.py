"""Run the benchmarks: `python -m benchmarks [--quick] [--only QUESTION] [--peer-limit SECONDS]`.

`python -m benchmarks speed [--only WORKLOAD]` prints where the time goes instead (`speed.py`), and keeps nothing.

Every figure of a question comes from one run. A full run keeps its results in `results.json` and `results.md`; with
`--only`, those of the other questions stay as they were, each with the day and the machine that it was measured on.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import speed
from benchmarks.measuring import Figures, Scale, measure
from benchmarks.printing import describe_machine

QUESTIONS = {
    name: import_module(f"benchmarks.{name}")
    for name in (
        *(
            "textbook",
            "peers",
            "photograph",
            "photographs",
            "growth",
            "choice",
            "jpeg",
            "blind",
            "light",
            "free_form",
            "layers",
        ),
        *("stack_border", "stacks", "blocks", "large", "clusters", "batches", "gradients"),
        *("stock_models", "scripts"),
    )
}
"""In the order in which they are asked."""
FOLDER = Path(__file__).parent
QUICK_PEER_LIMIT_S = 1.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure side by side; see README.md.")
    parser.add_argument("what", nargs="?", choices=["speed"], help="print where the time goes, and keep nothing")
    parser.add_argument("--only", action="append", help="one question, or workload; may be given more than once")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all works; keeps no results")
    parser.add_argument(
        "--peer-limit", type=float, default=120.0, metavar="SECONDS", help="for each peer (default 120)"
    )
    options = parser.parse_args()
    if options.what == "speed":
        speed.main(options.only, is_quick=options.quick)
        return
    for name in options.only or ():
        if name not in QUESTIONS:
            parser.error(f"--only takes one of {', '.join(QUESTIONS)}, but got {name}")
    scale = Scale(options.quick, QUICK_PEER_LIMIT_S if options.quick else options.peer_limit)
    kept = FOLDER / "results.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() and not scale.is_quick else {}
    for name in options.only or QUESTIONS:
        machine = describe_machine()
        outcomes = answer(name, scale)
        print("\n" + QUESTIONS[name].report(outcomes).markdown() + "\n", flush=True)
        results[name] = {
            "day": datetime.now(UTC).date().isoformat(),
            "peer_limit_s": scale.peer_limit_s,
            "machine": machine,
            "cases": outcomes,
        }
        if not scale.is_quick:
            kept.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            (FOLDER / "results.md").write_text(pages(results), encoding="utf-8")
    if scale.is_quick:
        print("A quick run: the sizes are tiny, and neither figures nor verdicts mean anything.")


def answer(question: str, scale: Scale) -> dict[str, Figures]:
    """Measure all cases of one question in turn."""
    outcomes = {}
    for case in QUESTIONS[question].cases(scale):
        print(f"{question}: {case.name} …", end=" ", flush=True)
        outcomes[case.name] = measure(case)
        print(outcomes[case.name].get("failed", "done"), flush=True)
    return outcomes


def pages(results: dict[str, Any]) -> str:
    """Write all that was kept as one page of Markdown."""
    parts = [
        "# Results",
        "Written by `python -m benchmarks`. [README.md](README.md) says what is compared, and how.",
    ]
    for name, kept in results.items():
        machine = ", ".join(f"{what} {value}" for what, value in kept["machine"].items())
        parts.append(QUESTIONS[name].report(kept["cases"]).markdown())
        parts.append(f"Measured on {kept['day']}, {kept['peer_limit_s']:g} s for each peer; {machine}.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
