"""The report as a table for people."""

from __future__ import annotations

from typing import Any

from deconv_cli.commands.console import print_note, print_table, print_warning
from deconv_cli.vocabulary import ROUNDING_NOISE


def print_summary(record: dict[str, Any]) -> None:
    """Print a run's report on stderr: the numbers in a table, then notes and warnings."""
    source, kernel, output = record["inputs"][0], record["kernel"], record["output"]
    rows = [
        ("input", f"{source['path']}  {_shape(source['shape'])} {source['axes']} {source['dtype']}"),
        ("kernel", f"{kernel['path']}  {_shape(kernel['shape'])} {kernel['convention']}, {_gain(kernel['dc_gain'])}"),
        ("boundary", _with_reason(record["boundary"], record.get("boundary_reason"))),
        ("padding", record["padding"]),
    ]
    if record.get("factor") is not None:
        rows.insert(1, ("factor", record["factor"]["path"]))
    if record["command"] == "invert":
        rows += _inversion_rows(record)
    elif record["noise"] is not None:
        rows.append(("noise", f"{record['noise']}, seed {record['seed']}"))
    rows += [
        ("output", f"{output['path']}  {_shape(output['shape'])} {output['dtype']}"),
        (
            "cost",
            f"{record['time_s']:.2f} s, {_memory(record['peak_memory_bytes'])}, {record['device']}, {record['dtype']}",
        ),
    ]
    print_table(f"deconv {record['command']}", rows)
    for note in record["notes"]:
        print_note(note)
    if record["command"] == "invert":
        _print_border_findings(record["well_posedness"])
        if record["lambda_choice"] is not None and record["lambda_choice"]["warning"] is not None:
            print_warning(f"{record['lambda_choice']['warning']}.")
        if record["solver"]["status"] not in ("converged", "closed_form", "stopped_at_noise"):
            print_warning(record["solver"]["message"])


def print_factor_summary(record: dict[str, Any]) -> None:
    """Print what was factored on stderr, then notes and warnings."""
    kernel, factors, output = record["kernel"], record["factors"], record["output"]
    rows = [
        ("kernel", f"{kernel['path']}  {_shape(kernel['shape'])} {kernel['convention']}, {_gain(kernel['dc_gain'])}"),
        ("images", f"{_shape(record['size'])}, from outputs of {_shape(record['output_size'])}"),
        ("boundary", record["boundary"]),
        ("padding", record["padding"]),
        ("method", _with_reason(record["method"], record["method_reason"])),
        ("λ", f"{record['lambda']:g} × σ²max, penalty {record['penalty']}"),
        *([] if record["rcond"] is None else [("rcond", f"{record['rcond']:g}")]),
        ("factors", f"{_memory(factors['bytes'])} in {factors['time_s']:.2f} s"),
        ("output", f"{output['path']}  {_memory(output['bytes'])}"),
        (
            "cost",
            f"{record['time_s']:.2f} s, {_memory(record['peak_memory_bytes'])}, {record['device']}, {record['dtype']}",
        ),
    ]
    print_table("deconv factor", rows)
    for note in record["notes"]:
        print_note(note)
    _print_border_findings(record["well_posedness"])


def _print_border_findings(finding: dict[str, Any] | None) -> None:
    """Say what the border loses and what would mend it, and where its influence reaches deep; else nothing."""
    if finding is None:
        return
    if finding["is_well_posed"] is False:
        print_warning(finding["reason"])
        for sentence in finding["advice"]:
            print_note(sentence)
        return
    if finding["is_well_posed"] is None or finding["lost_modes"]:
        print_note(finding["reason"])
    if finding["is_deep"]:
        print_note(_influence(finding["influence_depth"]))


def _influence(depths: dict[str, int | None]) -> str:
    faded = [
        f"{part.replace('%', ' %')} after {depth} {'pixel' if depth == 1 else 'pixels'}"
        for part, depth in depths.items()
        if depth is not None
    ]
    reaching = [part.replace("%", " %") for part, depth in depths.items() if depth is None]
    if not faded:
        return f"a mistake at the edge goes deep into the image: more than {reaching[0]} of it"
    sentence = f"a mistake at the edge fades to {', to '.join(faded)}"
    return f"{sentence}; more than {reaching[0]} of it goes deeper still" if reaching else sentence


def _inversion_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    solver, residual, conditioning, border = (record[name] for name in ("solver", "residual", "conditioning", "border"))
    condition = conditioning["condition"]
    rows = [
        ("minimized", record["objective"]),
        ("method", _with_reason(record["method"], record["method_reason"])),
    ]
    if record["lambda"] is not None:
        rows.append(
            ("λ", _with_reason(f"{record['lambda']:g} × σ²max, penalty {record['penalty']}", record["lambda_reason"]))
        )
    if record["rcond"] is not None:
        rows.append(("rcond", f"{record['rcond']:g}"))
    return [
        *rows,
        *_noise_rows(record),
        (
            "conditioning",
            f"σmax {conditioning['sigma_max']:.4g}, σmin {conditioning['sigma_min']:.4g}, "
            f"condition {'infinite' if condition is None else f'{condition:.4g}'}",
        ),
        (
            "solver",
            f"{solver['status'].replace('_', ' ')} after {solver['iterations']} iterations, "
            f"certificate {solver['certificate']:.2g}",
        ),
        ("residual", f"{residual['relative']:.3g} of the data, {residual['root_mean_square']:.3g} rms"),
        (
            "at the edge",
            f"residual rms {border[0]['residual_rms']:.3g} on the edge, {border[-1]['residual_rms']:.3g} "
            f"from {border[-1]['distance']} pixels inwards",
        ),
        *_prediction_rows(record["predicted_error"]),
    ]


def _noise_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Say how large the noise was taken to be, where something looked at it."""
    choice, predicted = record["lambda_choice"], record["predicted_error"]
    if choice is None:
        sigma = None if predicted is None else predicted["model"]["noise_sigma"]
        return [] if sigma is None else [("noise", f"σ {sigma:.3g}, as the expected error takes it")]
    source = "asked for" if choice["noise_sigma_given"] else "read off the frequencies that the kernel passes least"
    if not choice["noise_sigma_given"] and choice["noise_sigma"] == ROUNDING_NOISE:
        source = "that of rounding to whole numbers; no more was found"
    if choice["noise_sigma_given"] and choice["rule"] not in ("upre", "discrepancy"):
        source += f", but rule {choice['rule']} does not look at it"
    return [("noise", f"σ {choice['noise_sigma']:.3g}: {source}")]


def _prediction_rows(predicted: dict[str, Any] | None) -> list[tuple[str, str]]:
    if predicted is None:
        return []
    edge, inside = predicted["bands"][0], predicted["bands"][-1]
    depth = predicted["trusted_depth"]
    trusted = (
        "nowhere: what lies outside, or the noise, spoils all of it"
        if depth is None
        else "everywhere"
        if depth == 0
        else f"from {depth} pixels inwards"
    )
    rows = [
        (
            "expected error",
            f"{predicted['root_mean_square']:.3g} rms: {edge['predicted']:.3g} on the edge, "
            f"{inside['predicted']:.3g} from {inside['distance']} pixels inwards",
        ),
        ("trusted", f"{trusted} ({predicted['trusted_share']:.0%} of the pixels)"),
    ]
    if predicted["actual_root_mean_square"] is not None:
        rows.append(
            (
                "real error",
                f"{predicted['actual_root_mean_square']:.3g} rms: {edge['actual']:.3g} on the edge, "
                f"{inside['actual']:.3g} from {inside['distance']} pixels inwards",
            )
        )
    return rows


def _with_reason(value: str, reason: str | None) -> str:
    return value if reason is None else f"{value}: {reason}"


def _shape(shape: list[int]) -> str:
    return "×".join(str(n) for n in shape)


def _gain(gain: float | list[list[float]]) -> str:
    return f"sum {gain:.4g}" if isinstance(gain, float) else f"{len(gain[0])} → {len(gain)} channels"


def _memory(n_bytes: int) -> str:
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:.0f} KiB"
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
