"""What a file holds as a table on stdout: here it is the answer."""

from __future__ import annotations

from typing import Any

from deconv_cli.commands.cli_messages import with_options
from deconv_cli.commands.console import print_note, print_table, print_warning
from deconv_cli.vocabulary import format_size

MAX_ENTRIES = 40
"""Arrays of one file that are listed; `--json` tells of all."""


def print_inspection(record: dict[str, Any]) -> None:
    """Print what a file holds on stdout, then notes and warnings on stderr."""
    entries = record["entries"]
    rows = [("format", record["format"])]
    for entry in entries[:MAX_ENTRIES]:
        rows += _entry_rows(entry, is_only=len(entries) == 1)
    if len(entries) > MAX_ENTRIES:
        rows.append(("", f"and {len(entries) - MAX_ENTRIES} more, which --json tells of"))
    rows += [(name.replace("_", " "), _value(value)) for name, value in record["metadata"].items()]
    if record["made_by"] is not None:
        rows.append(("made by", str(record["made_by"])))
    print_table(record["path"], rows, to_stdout=True)
    for note in record["notes"]:
        print_note(note)
    for entry in entries:
        _print_findings(entry)


def _entry_rows(entry: dict[str, Any], *, is_only: bool) -> list[tuple[str, str]]:
    shape = format_size(entry["shape"]) or "a single number"
    letters = "" if entry["axes"] is None else f" {entry['axes']}"
    name = "" if entry["name"] is None else f"{entry['name']}  "
    rows = [(entry["kind"], f"{name}{shape}{letters} {entry['dtype']}")]
    if entry["minimum"] is not None:
        spread = "" if entry["mean"] is None else f", mean {entry['mean']:.4g} ± {entry['standard_deviation']:.4g}"
        title = "range of pieces" if entry["is_sampled"] else "range"
        rows.append((title if is_only else "", f"{entry['minimum']:.6g} to {entry['maximum']:.6g}{spread}"))
    return rows if entry["kernel"] is None else rows + _kernel_rows(entry["kernel"])


def _kernel_rows(kernel: dict[str, Any]) -> list[tuple[str, str]]:
    spectrum, gain = kernel["spectrum"], kernel["dc_gain"]
    condition = spectrum["condition"]
    offsets = zip(kernel["centroid_offset"], ("deep", "down", "across")[-len(kernel["size"]) :], strict=True)
    offset = ", ".join(f"{offset:+.2f} {direction}" for offset, direction in offsets)
    size = format_size(spectrum["image_size"])
    channels = kernel["channels"]
    total = f"sum {gain:.6g}" if channels is None else f"{channels[0]} → {channels[1]} channels"
    rows = [
        ("taps", f"{kernel['convention']}, {total}{', with a bias' if kernel['has_bias'] else ''}"),
        (
            "center",
            f"tap {tuple(kernel['origin'])}; the weight lies {offset} of it"
            + (", symmetric" if kernel["is_symmetric"] else ""),
        ),
        (
            "spectrum",
            f"σmax {spectrum['sigma_max']:.4g}, σmin {spectrum['sigma_min']:.4g}, condition "
            f"{'infinite' if condition is None else f'{condition:.4g}'} on {size} pixels",
        ),
    ]
    findings: dict[str, list[str]] = {}
    for border in kernel["borders"]:
        found = border["well_posedness"]
        word = "not possible" if found is None else _WORDS[found["is_well_posed"]]
        findings.setdefault(f"{word}: {border['reason']}", []).append(border["boundary"])
    said = [f"{', '.join(borders)}: {finding}" for finding, borders in findings.items()]
    return rows + [("borders" if place == 0 else "", sentence) for place, sentence in enumerate(said)]


_WORDS = {True: "well posed", False: "not well posed", None: "not tested"}


def _print_findings(entry: dict[str, Any]) -> None:
    name = "" if entry["name"] is None else f"{entry['name']}: "
    n_bad = entry["nan"] + entry["infinite"]
    if n_bad:
        print_warning(
            f"{name}{n_bad} of {entry['samples']} samples are not finite ({entry['nan']} NaN, {entry['infinite']} "
            "infinite); replace them before anything is computed"
        )
    elif entry["kernel_refusal"] is not None:
        print_warning(f"{name}{with_options(entry['kernel_refusal'])}")
    elif entry["kind"] == "kernel" and entry["kernel"] is None:
        print_warning(f"{name}all taps are zero, so nothing of an image would be left")
    for note in [] if entry["kernel"] is None else entry["kernel"]["notes"]:
        print_note(f"{name}{note}")


def _value(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(member)}" for name, member in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
