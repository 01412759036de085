"""The first screen of a page in plain words: a verdict, three numbers with their meaning, and commands to try next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from deconv_cli.diagnostics.conditioning import Widths, widest
from deconv_cli.diagnostics.predicted_error import ExpectedError
from deconv_cli.diagnostics.residual_tests import ResidualFinding
from deconv_cli.report.page_pictures import GRAY_LEVELS, ScaledImage
from deconv_cli.report.run import KernelInput
from deconv_cli.vocabulary import counted, format_percent
from deconv_cli.workflows.lambda_series import RATIOS, STRENGTHS
from deconv_cli.workflows.measurement import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.trust import DoubtReason

Row = tuple[str, str, str]
"""Name, value, meaning."""


@dataclass(frozen=True)
class Verdict:
    """Whether to use a result, `good`, `care` or `bad`, and why in one plain sentence."""

    level: str
    sentence: str


_WRONG_BLUR = "Do not use this result as it is: the blur in the input was probably another one."
_WRONG_EDGE = "Do not use this result as it is: the assumption about the outside of the frame is wrong."
_DOUBTED = {
    DoubtReason.SOLVER: "Do not use this result as it is: the computation stopped too early.",
    DoubtReason.RESIDUAL: _WRONG_BLUR,
    DoubtReason.RESIDUAL_TESTS: _WRONG_BLUR,
    DoubtReason.AMPLIFICATION: "Do not use this result as it is: its values are far too large for this input.",
    DoubtReason.CLIPPING: "Do not use this result as it is: many samples are darker than black or brighter than white.",
    DoubtReason.LAMBDA: "Do not use this result as it is: the input does not show how strongly to smooth.",
    DoubtReason.NOISE: "Do not use this result as it is: it shows mostly noise.",
    DoubtReason.KERNEL: _WRONG_BLUR,
    DoubtReason.ERROR: "Do not use this result as it is: its error is as large as its detail everywhere.",
}
_FINDINGS = {
    ResidualFinding.FINE: "You can use this result: blurred again, it matches the input up to the noise.",
    ResidualFinding.INCONCLUSIVE: "Nothing contradicts this result, but the input cannot confirm it either.",
    ResidualFinding.OVER_SMOOTHED: "You can use this result, but it is smoother than the input allows.",
    ResidualFinding.NOISE_FITTED: "Use this result with care: some of its detail is noise.",
}


def judge(result: Reconstruction, finding: ResidualFinding, doubts: Sequence[str] | None = None) -> Verdict:
    """Judge a result by its warnings, and by what it leaves of the input.

    `doubts` are those of the whole, if the result is a part of it.
    """
    own = result.doubts
    is_doubted = bool(own) if doubts is None else bool(doubts)
    if is_doubted and own:
        is_edge = ResidualFinding.WRONG_BOUNDARY.sentence in own[0].sentence
        return Verdict("bad", _WRONG_EDGE if is_edge else _DOUBTED[own[0].reason])
    if is_doubted:
        return Verdict("bad", "Do not use this result as it is: see the warning below.")
    if not result.warnings and not result.settings.is_linear and result.settings.objective != "photo":
        return Verdict(
            "good", "No check contradicts this result. The residual below shows how much of the input it explains."
        )
    if not result.warnings:
        is_fine = finding is not ResidualFinding.INCONCLUSIVE  # a λ that was chosen from the data may smooth a little
        return Verdict("good", _FINDINGS[ResidualFinding.FINE if is_fine else finding])
    is_named = finding in _FINDINGS and any(finding.sentence in caution for caution in result.cautions)
    return Verdict("care", _FINDINGS[finding] if is_named else "Use this result with care: see the warning below.")


def first_numbers(
    result: Reconstruction,
    predicted: ExpectedError | None,
    diagnosis: Diagnosis,
    scale: ScaledImage,
    spacing: tuple[float, ...] | None,
) -> list[Row]:
    """Choose the three numbers that a person asks for first.

    `scale` is the estimate with its values of black and white; the spacing of the samples is in micrometers.
    """
    return [
        *_error(predicted, result.actual_error, scale),
        *_finest(result, diagnosis.resolution, spacing),
        (
            "Left over",
            percent(result.residual.relative),
            "of the input that the result does not explain: noise, or an effect other than this blur.",
        ),
    ][:3]


def _error(predicted: ExpectedError | None, actual: float | None, scale: ScaledImage) -> list[Row]:
    is_gray_level = scale.unit == GRAY_LEVELS

    def shown(error: float) -> str:
        return f"{_digits(error)} of 255" if is_gray_level else percent(error / (scale.high - scale.low))

    off = "Root mean square error of the values, in percent of the range of the result."
    meaning = "Root mean square error of the pixels, in gray levels: large errors count more." if is_gray_level else off
    if predicted is None:
        return [] if actual is None else [("Error", shown(actual), f"{meaning} It was measured with the truth.")]
    real = "" if actual is None else f" Compared with the truth it is {shown(actual)}."
    share = predicted.trusted_share
    where = "of the result: the error is smaller than the detail everywhere."
    if share == 0:
        where = "of the result: it is doubted, or its error is as large as its detail everywhere."
    elif share < 1:
        where = "of the result; elsewhere, where it is hatched, the error is as large as the detail."
    return [
        ("Expected error", shown(predicted.size), f"{meaning}{real}"),
        ("Trustworthy", format_percent(share, 3) if share else "0 %", where),
    ]


def _finest(result: Reconstruction, widths: Widths | None, spacing: tuple[float, ...] | None) -> list[Row]:
    """Name the size of the finest detail, in micrometers if the spacing of the samples is known."""
    if result.settings.objective == "photo":
        meaning = "The finest detail that the input shows."
        return [] if result.finest is None else [("Finest detail", counted(_digits(result.finest), "pixel"), meaning)]
    if not result.settings.is_linear or widths is None or widest(widths) is None:
        return []
    finest = [max(filter(None, axis)) for axis in zip(*widths, strict=True)]
    meaning = "Two points that are closer together merge into one."
    if spacing is None or len(spacing) != len(finest):
        return [("Finest detail", counted(_digits(max(finest)), "pixel"), meaning)]
    sizes = " × ".join(_digits(width * step) for width, step in zip(finest, spacing, strict=True))
    return [("Finest detail", f"{sizes} µm", meaning)]


def percent(share: float) -> str:
    """Write a share with two digits; a tiny one as less than a bound."""
    return format_percent(share) if share == 0 or share >= 1e-4 else "under 0.01 %"


def _digits(number: float) -> str:
    """Write a number with two digits, or all digits before the point."""
    return f"{number:.0f}" if abs(number) >= 100 or number == round(number) else f"{number:.2g}"


def try_next(rerun: str, result: Reconstruction, kernel: KernelInput, *, is_picture: bool) -> list[tuple[str, str]]:
    """List what to do next, each with the command that does it and writes files of its own.

    The command line `rerun` makes the same result again; `is_picture` is false for tensors.
    """
    found: list[tuple[str, str]] = []
    reasons = {doubt.reason for doubt in result.doubts}
    blames_kernel = bool(reasons - {DoubtReason.SOLVER, DoubtReason.LAMBDA})
    if blames_kernel and is_picture and kernel.kernel.n_axes == 2:
        if kernel.estimate is None:
            estimated = varied(rerun, "found", {"--kernel": "estimate"}, is_fresh=True)
            found.append(("Find the blur in the picture itself", estimated))
        else:
            free = ["deconv", "kernel", "estimate", "--free", "--output=found.npy", "--", shlex.split(rerun)[-1]]
            found.append(("Find a kernel of any shape, then give it by --kernel", shlex.join(free)))
    if DoubtReason.SOLVER in reasons:
        longer = {"--max-iterations": str(10 * result.settings.max_iterations)}
        found.append(("Compute longer", varied(rerun, "longer", longer)))
    if ResidualFinding.WRONG_BOUNDARY.sentence in " ".join(result.warnings):
        found.append(("Assume nothing outside the frame", varied(rerun, "free", {"--boundary": "unknown"})))
    ratios = STRENGTHS if result.settings.objective == "photo" else RATIOS
    sharper, smoother = (vary_smoothing_of(rerun, result, ratio) for ratio in (ratios[1], ratios[3]))
    tried = [("Sharper, with more noise", sharper), ("Smoother, with less noise", smoother)]
    is_noisy = bool(reasons & {DoubtReason.NOISE, DoubtReason.CLIPPING})
    found += [(label, line) for label, line in (tried[::-1] if is_noisy else tried) if line is not None]
    return [*found[:2], ("The same command with every option", rerun)]


def vary_smoothing_of(rerun: str, result: Reconstruction, ratio: float) -> str | None:
    """Write a command line with another strength or λ; `None` if a result has neither."""
    if result.settings.objective == "photo":
        option, values = "--strength", [result.settings.strength or 1.0]
    elif result.lam is None:
        return None
    else:
        option, values = "--lambda", list(result.lam) if isinstance(result.lam, tuple) else [result.lam]
    if max(values) == 0 and ratio == RATIOS[3]:
        return varied(rerun, "smoother", {option: "0.001"})
    if min(values) <= 0:
        return None
    name = "sharper" if ratio < 1 else "smoother"
    times = ratio if ratio > 1 else 1 / ratio
    wanted = ",".join(f"{ratio * value:.4g}" for value in values)
    return varied(rerun, name if times in (2, 10) else f"much_{name}", {option: wanted})


def varied(rerun: str, name: str, options: dict[str, str], *, is_fresh: bool = False) -> str:
    """Change options of a command, or drop all others if `is_fresh`; output and page are named after `name`."""
    words = shlex.split(rerun)
    end = words.index("--") if "--" in words else len(words)
    left_out = {"--output", "--force", "--error-map", "--trust-mask", *options}
    kept = [word for word in words[2:end] if word.partition("=")[0] not in left_out and not is_fresh]
    output = next(word for word in words if word.startswith("--output=")).removeprefix("--output=")
    folder, slash, file = output.rpartition("/")
    stem, dot, suffix = file.partition(".")
    own = f"{folder}{slash}{stem}_{name}"
    changed = [f"{option}={value}" for option, value in options.items()]
    return shlex.join(
        [*words[:2], *changed, f"--output={own}{dot}{suffix}", f"--report={own}.html", *kept, *words[end:]]
    )
