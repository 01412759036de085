"""The first lines of a page: what was done, with which λ and why, and where the picture is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.diagnostics.predicted_error import ExpectedError
from deconv_cli.diagnostics.residual_finding import ResidualFinding
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.report.run import InvertRun
from deconv_cli.vocabulary import counted, format_lambda, format_percent, format_size
from deconv_cli.workflows.diagnose import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction


@dataclass(frozen=True)
class PageHeader:
    """What was done, with which λ and why, where to trust the picture, and why to doubt it: in sentences."""

    done: str
    chosen: str
    trust: str
    warnings: tuple[str, ...]


def write_header(run: InvertRun, diagnosis: Diagnosis) -> PageHeader:
    """Describe a run in a few plain sentences."""
    source, kernel, result = run.source, run.kernel, run.reconstruction
    done = (
        f"{source.path} ({format_size(source.shape)}, {source.dtype}) was restored from what the kernel {kernel.path} "
        f"({format_size(kernel.shape)} taps) made of it; {as_rule(result.boundary).description}."
    )
    if source.is_picture:
        done = f"{done} It was restored {result.reasons.light}."
    trust = describe_trust(result, diagnosis, result.predicted_error, is_trusted=result.is_trusted)
    return PageHeader(done, describe_lambda(result), trust, tuple(map(as_sentence, result.warnings)))


def describe_lambda(result: Reconstruction) -> str:
    """Say which λ was taken, and why."""
    if result.lam is None:
        return f"There is no λ. Method {result.choice.method}: {result.choice.reason}."
    return f"λ = {format_lambda(result.lam)} (in units of σ²max, penalty {result.penalty}): {result.reasons.lam}."


def describe_trust(
    result: Reconstruction, diagnosis: Diagnosis, predicted: ExpectedError | None, *, is_trusted: bool
) -> str:
    """Say where to trust a picture, and how far.

    Args:
        result: what was examined.
        diagnosis: what was found.
        predicted: the error to be expected of the whole picture; `None` where it was not predicted.
        is_trusted: whether nothing speaks against it.
    """
    finding = diagnosis.tests.finding
    sentences = [] if is_trusted else ["Nowhere as it is: see the warnings."]
    # Of a λ that was chosen from the data, the prompt does not say that it smooths, and is right.
    is_chosen = any(part.lambda_choice is not None for part in result.channels or (result,))
    is_warned = any(finding.sentence in warning for warning in result.warnings)
    is_left_out = is_warned or (finding is ResidualFinding.OVER_SMOOTHED and is_chosen)
    sentences += [] if is_left_out else [as_sentence(finding.sentence)]
    sentences += [] if diagnosis.resolution is None else [_resolved(diagnosis.resolution.widest)]
    if predicted is not None:
        unit = "" if result.tone_curve is None else f" of {result.unit},"
        sentences += _expected_error(predicted, unit, is_trusted=is_trusted)
    return " ".join([*sentences, _edges(result, diagnosis, is_predicted=predicted is not None)])


def _resolved(width: float | None) -> str:
    if width is None:
        return "The resolution is not limited evenly: some channel hardly comes through."
    if width < 1.05:
        return "Single pixels are resolved."
    return f"Detail finer than about {width:.1f} pixels is not resolved."


def _expected_error(predicted: ExpectedError, unit: str, *, is_trusted: bool) -> list[str]:
    share, actual, depth = predicted.trusted_share, predicted.actual_root_mean_square, predicted.trusted_depth
    real = "" if actual is None else f"; the real one is {actual:.3g}"
    size = f"{predicted.root_mean_square:.3g} rms{unit}"
    size += "" if predicted.in_samples is None else f" or {predicted.in_samples:.3g} in stored values,"
    expected = f"If kernel and boundary are right, an error of {size} is to be expected{real}."
    if not is_trusted:
        return [expected]
    if share == 0:
        return [expected, "No pixel is to be trusted: noise, or what lies outside the frame, outweighs the picture."]
    inwards = f"adds little to it from {counted(depth, 'pixel')} inwards" if depth else "adds nothing to it"
    trusted = f"{format_percent(share, 3)} of the picture is to be trusted then; the rest is hatched"
    return [expected, f"What lies outside the frame {inwards}.", f"{trusted}: there the error outweighs the contrast."]


def _edges(result: Reconstruction, diagnosis: Diagnosis, *, is_predicted: bool) -> str:
    if as_rule(result.boundary).is_periodic:
        return "There is no edge to distrust, if the image does go on around a torus."
    noise = f"noise comes back {diagnosis.conditioning.noise_gain:.3g} times as strong"
    if is_predicted:
        return as_sentence(noise)
    influence = None if result.well_posedness is None else result.well_posedness.influence
    if influence is None or influence.tenth is None:
        return f"A mistake at the edge may reach through the whole picture; {noise}."
    return (
        f"Trust the outermost {max(influence.tenth, 1)} pixels least, where a mistake at the edge has not faded; "
        f"{noise}."
    )


def as_sentence(clause: str) -> str:
    """Begin with a capital, and end with a full stop."""
    return clause[:1].upper() + clause[1:] + ("" if clause.endswith((".", "!", "?")) else ".")
