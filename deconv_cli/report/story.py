"""The first lines of a page: what was done, with which λ and why, and where the picture is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.predicted_error import PredictedError
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.report.record import Record
from deconv_cli.workflows.diagnose import Diagnosis


@dataclass(frozen=True)
class Story:
    """What a reader needs first.

    Attributes:
        done: what was done.
        chosen: with which λ, and why.
        trust: where the picture is to be trusted.
        warnings: what speaks against it, a sentence each.
    """

    done: str
    chosen: str
    trust: str
    warnings: tuple[str, ...]


def tell(record: Record, diagnosis: Diagnosis, choice: LambdaChoice | None, predicted: PredictedError | None) -> Story:
    """Put a restoration into a few plain sentences."""
    source, kernel, solver = record["inputs"][0], record["kernel"], record["solver"]
    done = (
        f"{source['path']} ({_by(source['shape'])}, {source['dtype']}) was restored from what the kernel "
        f"{kernel['path']} ({_by(kernel['shape'])} taps) made of it; {as_rule(record['boundary']).description}."
    )
    warnings = [] if choice is None or not choice.warning else [_stopped(_capital(choice.warning))]
    if solver["status"] not in ("converged", "closed_form"):
        warnings.insert(0, f"The solver did not finish: {_stopped(solver['message'])}")
    border = record["well_posedness"]
    if border is not None and border["is_well_posed"] is False:
        warnings.append(_stopped(_capital(border["reason"])))
    if diagnosis.tests.finding.is_warning:
        warnings.append(diagnosis.tests.finding.sentence)
    return Story(done, _chosen(record, choice), " ".join(_trust(record, diagnosis, predicted)), tuple(warnings))


def _chosen(record: Record, choice: LambdaChoice | None) -> str:
    if record["lambda"] is None:
        return f"There is no λ. Method {record['method']}: {_stopped(record['method_reason'])}"
    reason = record["lambda_reason"] if choice is None else choice.reason
    return f"λ = {record['lambda']:g} (in units of σ²max, penalty {record['penalty']}): {_stopped(reason)}"


def _trust(record: Record, diagnosis: Diagnosis, predicted: PredictedError | None) -> list[str]:
    sentences = []
    tests = diagnosis.tests
    if not tests.finding.is_warning:
        sentences.append(tests.finding.sentence)
    width = diagnosis.resolution.widest
    if width is None:
        sentences.append("The resolution is not limited evenly: some channel hardly comes through.")
    elif width < 1.05:
        sentences.append("Single pixels are resolved.")
    else:
        sentences.append(f"Detail finer than about {width:.1f} pixels is not resolved.")
    if predicted is not None:
        sentences += _foretold(predicted)
    sentences.append(_edges(record, diagnosis, has_prediction=predicted is not None))
    return sentences


def _foretold(predicted: PredictedError) -> list[str]:
    share, level, actual = predicted.trusted_share, predicted.root_mean_square, predicted.actual_root_mean_square
    real = "" if actual is None else f"; the real one is {actual:.3g}"
    expected = f"If kernel and border are right, an error of {level:.3g} rms is to be expected{real}."
    if share == 0:
        return [expected, "The picture is nowhere to be trusted: what lies outside, or the noise, spoils all of it."]
    depth = predicted.trusted_depth
    if not depth:
        return [expected, "What lies outside the frame adds little to it anywhere."]
    return [
        expected,
        f"From {depth} {'pixel' if depth == 1 else 'pixels'} inwards, on {100 * share:.3g} % of the picture, what lies "
        "outside the frame adds little to it; the rest is hatched.",
    ]


def _edges(record: Record, diagnosis: Diagnosis, *, has_prediction: bool) -> str:
    border = record["well_posedness"]
    depths = None if border is None else border["influence_depth"]
    if as_rule(record["boundary"]).is_periodic:
        return "There is no edge to distrust, if the image does go on around a torus."
    noise = f"noise comes back {diagnosis.conditioning.noise_gain:.3g} times as strong"
    if has_prediction:
        return f"{_capital(noise)}."
    if depths is None or depths["10%"] is None:
        return f"A mistake at the edge may reach through the whole picture; {noise}."
    return (
        f"Trust the outermost {max(depths['10%'], 1)} pixels least, where a mistake at the edge has not faded; {noise}."
    )


def _by(shape: list[int]) -> str:
    return "×".join(str(n) for n in shape)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _stopped(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else sentence + "."
