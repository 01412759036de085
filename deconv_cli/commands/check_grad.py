"""`deconv check-grad`: say of every parameter whether its gradient arrives and whether it is right."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands import option_groups as options
from deconv_cli.commands.console import print_document, print_note, print_warning
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.findings import print_findings
from deconv_cli.commands.typed_options import refuse_idle, refuse_idle_for_file, typed_options
from deconv_cli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deconv_cli.gradients.subject import Subject
    from deconv_cli.gradients.verdicts import Examination
    from deconv_cli.io.data import DataFile
    from deconv_cli.models.model_files import ModelFile
    from deconv_cli.models.named_code import NamedCode

EXAMPLE = (
    "Example: deconv check-grad sample_images/network.safetensors --model sample_images/network.py:Network "
    "--data sample_images/patches.safetensors --loss cross-entropy"
)

_WARNING_LENGTH = 240


class Mode(StrEnum):
    """In which mode layers such as dropout and batch normalization run."""

    TRAIN = "train"
    EVAL = "eval"


class FisherKind(StrEnum):
    """Which diagonal is written."""

    EMPIRICAL = "empirical"
    SAMPLED = "sampled"
    EXACT = "exact"
    GGN = "ggn"


def check_grad(
    invocation: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL]",
            help="The model: .safetensors, a state dict or a whole module of torch.save, .pt2, TorchScript. Without a "
            "file the weights are as --model makes them.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="CODE",
            help="The model's class, or a function that returns a model: file.py:Name or package.module:Name. This "
            "code is run; nothing that MODEL carries is.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option("--init", metavar="JSON", help='Arguments of that class: {"hidden": 64}, or a list.'),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="NAME|CODE",
            help="cross-entropy, nll, mse, l1, smooth-l1, huber, bce, bce-with-logits; projection (a fixed random "
            "weight for every number of the output; a model that returns its loss keeps it); or file.py:function, "
            "called with the output and the target, or with the output alone.",
        ),
    ] = "projection",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Tensors for forward (.safetensors, .pt, .npz), and 'target' for the loss.",
            show_default=False,
        ),
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            "--input-shape",
            metavar="SHAPE",
            help="Draw an input: 8,1,28,28, with dtype and range where they matter: 8,32:int64:0..100. Once for each "
            "input of forward.",
            show_default=False,
        ),
    ] = None,
    target_shape: Annotated[
        str | None,
        typer.Option("--target-shape", metavar="SHAPE", help="Draw a target, written in the same way."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", help="How many samples of --data to take at once.", min=1)
    ] = 16,
    batch_axis: Annotated[
        str, typer.Option("--batch-axis", metavar="N|none", help="Which axis counts the samples.")
    ] = "0",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the data and of random layers.", min=0, max=2**62)] = 0,
    mode: Annotated[Mode, typer.Option("--mode", help="Mode of dropout and batch normalization.")] = Mode.TRAIN,
    budget: Annotated[
        float, typer.Option("--budget", metavar="SECONDS", help="Time for finite differences.", min=0.0)
    ] = 60.0,
    second_order: Annotated[bool, typer.Option("--second-order", help="Compare second derivatives too.")] = False,
    fisher: Annotated[
        Path | None,
        typer.Option(
            "--fisher",
            metavar="FILE",
            help="Write the diagonal of the Fisher matrix (.safetensors), over all of --data, in evaluation mode.",
            show_default=False,
        ),
    ] = None,
    fisher_kind: Annotated[
        FisherKind,
        typer.Option(
            "--fisher-kind",
            help="Squared gradients of the given targets, of targets drawn from the model (sampled), of all classes by "
            "their probability (exact), or the generalized Gauss-Newton matrix.",
        ),
    ] = FisherKind.EMPIRICAL,
    fisher_draws: Annotated[
        int, typer.Option("--fisher-draws", metavar="N", help="Draws for each sample (sampled).", min=1)
    ] = 1,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect",
            metavar="VERDICT:NAME",
            help="Accept a finding: UNUSED:head.weight. NAME may hold *; BATCH-LEAK:model is for the whole.",
            show_default=False,
        ),
    ] = None,
    allow_global: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-global",
            metavar="NAME",
            help="Let a pickle use this class besides those of torch.nn and --model: package.module.Name.",
            show_default=False,
        ),
    ] = None,
    trust_file: Annotated[
        str | None,
        typer.Option("--trust-file", metavar="SHA256", help="Run the TorchScript or .pt2 file with this fingerprint."),
    ] = None,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Find out why a model does not learn: does each gradient arrive, is it right, and which line is to blame."""
    started = time.perf_counter()
    if file is None and model is None:
        raise UsageError("there is nothing to check: name a model file, or a class with --model file.py:Class.")
    axis = _parse_axis(batch_axis)
    typed = typed_options(invocation)
    refuse_idle(typed, fisher_kind=fisher_kind.value, batch_axis=axis)
    if fisher is not None and fisher.suffix != ".safetensors":
        raise UsageError(f"--fisher: '{fisher}' should end in .safetensors, which is what is written.")
    if fisher is not None and fisher.exists() and not force:
        raise UsageError(f"'{fisher}' exists; choose another name or pass --force.")
    expectations = [_parse_expectation(text) for text in expect or []]
    with _progress(quiet or as_json) as tell, _gathered_warnings() as warned:
        tell("reading the model")
        case = _open_case(
            _Asked(
                file=file,
                model=model,
                init=_parse_init(init),
                loss=loss,
                data=data,
                input_shapes=input_shape or [],
                target_shape=target_shape,
                batch_size=batch_size,
                batch_axis=axis,
                seed=seed,
                mode=mode,
                allow_global=allow_global or [],
                trust_file=trust_file,
                typed=typed,
            )
        )
        from deconv_cli.gradients.examination import examine

        examination = examine(case.subject, budget=budget, second_order=second_order, on_progress=tell)
        record = _record(case, examination, expectations, mode)
        if fisher is not None:
            record["fisher"] = _write_fisher(fisher, case, fisher_kind, fisher_draws, batch_size, tell)
    record["notes"] += _told_warnings(warned)
    record["time_s"] = time.perf_counter() - started
    _announce(record, as_json=as_json, quiet=quiet, verbose=verbose)
    code = ExitCode(record["exit_code"])
    if code is not ExitCode.SUCCESS:
        raise typer.Exit(code)


@dataclass(frozen=True)
class _Asked:
    file: Path | None
    model: str | None
    init: Any
    loss: str
    data: Path | None
    input_shapes: list[str]
    target_shape: str | None
    batch_size: int
    batch_axis: int | None
    seed: int
    mode: Mode
    allow_global: list[str]
    trust_file: str | None
    typed: frozenset[str]


@dataclass(frozen=True, eq=False)
class _Case:
    """A subject, and where it came from.

    Attributes:
        subject: what is examined.
        loss_name: as it was asked for.
        data: all of the data file, or None for synthetic data.
        model: description of the model for the report.
        data_kind: `given`, `stored` or `synthetic`.
        inputs: shapes of the inputs.
        notes: what was assumed.
    """

    subject: Subject
    loss_name: str
    data: DataFile | None
    model: dict[str, Any]
    data_kind: str
    inputs: list[str]
    notes: list[str]


def _open_case(asked: _Asked) -> _Case:
    from deconv_cli.gradients.inputs import InputSpec, draw_inputs, guess_inputs, sort_data
    from deconv_cli.gradients.losses import NAMED_LOSSES, named_loss, takes_target, user_loss
    from deconv_cli.gradients.subject import Subject, seed_everything
    from deconv_cli.models.model_building import build_model
    from deconv_cli.models.model_files import read_model
    from deconv_cli.models.named_code import load_named

    seed_everything(asked.seed)  # weights that --model makes are the same each time
    named = load_named(asked.model, "--model") if asked.model else None
    stored = (
        read_model(asked.file, named=named, allowed_globals=asked.allow_global, trusted_sha256=asked.trust_file)
        if asked.file
        else None
    )
    if stored is not None and asked.file is not None:
        refuse_idle_for_file(asked.typed, asked.file, stored)
    notes = list(stored.notes) if stored else []
    module, examples = _module_of(stored, named, asked, build_model)
    module.train(asked.mode is Mode.TRAIN) if examples is None else None
    if examples is not None:
        notes.append("an exported program keeps the mode it was exported in, and no hand-written backward")
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None) or _default_dtype()
    whole = None
    keywords: dict[str, Any] = {}
    target = None
    if asked.data is not None:
        from deconv_cli.io.data import open_data

        whole = open_data(asked.data)
        n_rows = asked.batch_size if asked.batch_axis == 0 else None
        first = sort_data(_as_dtype(whole.samples(n_rows), dtype), module)
        arguments, keywords, target, kind = first.arguments, first.keywords, first.target, "given"
    elif asked.input_shapes:
        specs = [InputSpec.parse(text, "--input-shape") for text in asked.input_shapes]
        arguments, kind = draw_inputs(specs, dtype, asked.seed), "synthetic"
    elif examples is not None and examples[0] is not None:
        arguments, keywords, kind = *examples, "stored"
    else:
        spec, note = guess_inputs(module, dtype, asked.seed)
        notes.append(note)
        arguments, kind = draw_inputs([spec], dtype, asked.seed), "synthetic"
    if asked.target_shape is not None:
        if target is not None:
            raise UsageError(
                f"--target-shape draws a target, but '{asked.data}' holds one; leave --target-shape out, or the target."
            )
        drawn = InputSpec.parse(asked.target_shape, "--target-shape")
        (target,) = draw_inputs([drawn], dtype, asked.seed + 1)
    subject = Subject(module, arguments, keywords, target, lambda output, _: output, asked.seed, asked.batch_axis)
    if ":" in asked.loss:
        function = load_named(asked.loss, "--loss").value
        subject.loss = user_loss(function, has_target=target is not None)
        uses_target = takes_target(function)
    else:
        subject.loss = named_loss(asked.loss)
        uses_target = asked.loss in NAMED_LOSSES
        notes += _with_output(subject, asked)
    if target is not None and not uses_target:
        if asked.target_shape is not None:
            raise UsageError(
                f"--target-shape draws a target, but --loss {asked.loss} takes none; leave it out, or name a loss that "
                "takes a target."
            )
        notes.append(f"the target of --data is not used: --loss {asked.loss} takes none")
    name = str(asked.file) if asked.file else str(asked.model)
    return _Case(
        subject=subject,
        loss_name=asked.loss,
        data=whole,
        model={
            "name": name,
            "kind": stored.kind.value if stored else "code",
            "sha256": stored.sha256 if stored else None,
            "class": type(module).__name__,
            "code": asked.model,
        },
        data_kind=kind,
        inputs=[f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in _tensors((arguments, keywords))],
        notes=notes,
    )


def _module_of(
    stored: ModelFile | None,
    named: NamedCode | None,
    asked: _Asked,
    build: Callable[..., nn.Module],
) -> tuple[nn.Module, tuple[Any, dict[str, Any]] | None]:
    """Find the module to examine, and the inputs that its file carries."""
    if stored is not None and stored.exported is not None:
        from deconv_cli.gradients.exported import ExportedModule

        exported = stored.exported
        return ExportedModule(exported.module), (exported.example_arguments, exported.example_keywords)
    if stored is not None and stored.module is not None:
        return stored.module, None
    if named is None:
        raise UsageError(
            f"'{asked.file}' holds weights but not what is computed with them; name the class with --model "
            "file.py:Class."
        )
    return build(named, asked.init, stored), None


def _default_dtype() -> torch.dtype:
    import torch

    return torch.get_default_dtype()


def _tensors(found: Any) -> list[torch.Tensor]:  # noqa: ANN401
    import torch

    return [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def _as_dtype(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Give floating point inputs the precision of the model."""
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def _with_output(subject: Subject, asked: _Asked) -> list[str]:
    """Settle what depends on the shape of the output: a synthetic target, which axis holds classes, the Fisher matrix.

    Returns:
        What was assumed, a sentence each.
    """
    import torch

    from deconv_cli.gradients.fisher import refuse_projection
    from deconv_cli.gradients.losses import NAMED_LOSSES, OF_CLASSES, classes_are_last, only_tensor

    loss = NAMED_LOSSES.get(asked.loss)
    needs_target = loss is not None and subject.target is None
    if not (needs_target or asked.loss in OF_CLASSES or "fisher" in asked.typed):
        return []
    output = _first_output(subject)
    if loss is None:
        refuse_projection(output)
        return []
    notes = []
    tensor = only_tensor(output, asked.loss)
    if needs_target:
        subject.target = loss.draw_target(tensor, torch.Generator().manual_seed(asked.seed + 1))
        notes.append("the target is synthetic")
    if asked.loss in OF_CLASSES and classes_are_last(tensor, subject.target):
        notes.append(
            f"the output of shape {tuple(tensor.shape)} was read as (batch, steps, classes), as the shape "
            f"{tuple(subject.target.shape)} of the target tells"
        )
    return notes


def _first_output(subject: Subject) -> Any:  # noqa: ANN401
    import torch

    with torch.no_grad():
        try:
            return subject.output()
        except Exception as error:
            raise UsageError(
                f"the model cannot be run on these inputs ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0][:200].rstrip('.')}); check --input-shape and --data."
            ) from error


def _parse_init(text: str | None) -> Any:  # noqa: ANN401
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--init must be JSON such as {{\"hidden\": 64}}, but is '{text}'.") from error
    if not isinstance(found, dict | list):
        raise UsageError(f"--init must be a JSON object or a list, but is '{text}'.")
    return found


def _parse_axis(text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"--batch-axis must be a whole number or none, but is '{text}'.")
    return int(text)


def _parse_expectation(text: str) -> tuple[str, str]:
    from deconv_cli.gradients.verdicts import Verdict

    word, colon, name = text.partition(":")
    known = {verdict.value: verdict.value for verdict in Verdict}
    known |= {value.replace(" ", "-"): value for value in known}
    if not colon or not name or word not in known:
        raise UsageError(
            f"--expect must be VERDICT:NAME with one of {', '.join(sorted(set(known.values())))}, but is '{text}'."
        )
    return known[word], name


def _write_fisher(
    path: Path, case: _Case, kind: FisherKind, n_draws: int, batch_size: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Average over all samples, and write the diagonal under the names of the state dict."""
    from deconv_cli.gradients.fisher import Batch, diagonal_fisher
    from deconv_cli.gradients.inputs import sort_data
    from deconv_cli.io.data import write_tensors
    from deconv_cli.report.examination import describe_fisher

    subject, data = case.subject, case.data
    dtype = next(p.dtype for p in subject.model.parameters())
    n_samples = data.n_samples if data else 0

    def batches() -> Iterator[Batch]:
        if data is None:
            yield Batch(subject.arguments, subject.keywords, subject.target)
            return
        for start in range(0, n_samples, batch_size):
            sorted_rows = sort_data(_as_dtype(data.rows(start, start + batch_size), dtype), subject.model)
            yield Batch(sorted_rows.arguments, sorted_rows.keywords, sorted_rows.target)

    with subject.evaluating(), _told_failure(path):
        found = diagonal_fisher(
            subject.model,
            batches(),
            case.loss_name,
            subject.loss,
            kind=kind.value,
            n_draws=n_draws,
            seed=subject.seed,
            on_progress=lambda n: tell(f"Fisher matrix: {n} of {n_samples or n} samples"),
        )
    record = {**describe_fisher(found), "path": str(path), "data": case.data_kind, "model": case.model}
    write_tensors(path, {name: tensor.to(dtype) for name, tensor in found.diagonal.items()}, record)
    return record


@contextlib.contextmanager
def _told_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0][:200].rstrip(".")
        raise UsageError(
            f"'{path}' was not written: the model cannot be differentiated by samples ({reason})."
        ) from error


def _record(case: _Case, examination: Examination, expectations: list[tuple[str, str]], mode: Mode) -> dict[str, Any]:
    from importlib import metadata

    from deconv_cli.models.model_format import ModelFormat
    from deconv_cli.report.examination import describe_examination

    examination.notes[:0] = case.notes
    if case.data_kind == "synthetic":
        examination.notes.append(
            "the data are synthetic: a verdict holds for them, and ZERO may be different for yours"
        )
    accepted, met = set(), set()
    found = [(f.verdict.value, f.name) for f in examination.parameters]
    found += [(f.verdict.value, "model") for f in examination.general]
    for verdict, name in found:
        for expectation in expectations:
            if expectation[0] == verdict and fnmatch.fnmatchcase(name, expectation[1]):
                accepted.add(verdict if name == "model" else name)
                met.add(expectation)
    stale = [f"{verdict}:{name}" for verdict, name in expectations if (verdict, name) not in met]
    if stale:
        examination.notes.append(f"not found, though expected: {', '.join(stale)}")
    faults = [f for f in examination.parameters if f.verdict.is_fault and f.name not in accepted]
    general = [f for f in examination.general if f.verdict.is_fault and f.verdict.value not in accepted]
    undecided = [f for f in examination.parameters if f.verdict.is_undecided and f.name not in accepted]
    code = ExitCode.FAULT_FOUND if faults or general else ExitCode.UNTRUSTWORTHY if undecided else ExitCode.SUCCESS
    return {
        "schema": 1,
        "command": "check-grad",
        "model": case.model,
        "mode": "exported" if case.model["kind"] == ModelFormat.EXPORTED else mode.value,
        "loss_name": case.loss_name,
        "data": {"kind": case.data_kind, "inputs": case.inputs, "seed": case.subject.seed},
        **describe_examination(examination, frozenset(accepted)),
        "exit_code": int(code),
        "conclusion": _conclude(len(faults), len(general), len(undecided), len(examination.parameters), len(accepted)),
        "versions": {"deconv": metadata.version("deconv-cli"), "torch": metadata.version("torch")},
    }


def _conclude(n_faults: int, n_general: int, n_undecided: int, n_parameters: int, n_accepted: int) -> str:
    expected = f" ({n_accepted} expected)" if n_accepted else ""
    if n_faults or n_general:
        also = f" and {n_general} of the model as a whole" if n_general else ""
        return f"faults: {n_faults} of {n_parameters} parameters{also}{expected}"
    if n_undecided:
        return f"no verdict on {n_undecided} of {n_parameters} parameters, no fault in the others{expected}"
    return f"healthy: {n_parameters} parameters{expected}"


def _announce(record: dict[str, Any], *, as_json: bool, quiet: bool, verbose: bool) -> None:
    if as_json:
        print_document(record)
    elif quiet:
        typer.echo(record["conclusion"])
    else:
        print_findings(record, verbose=verbose)
    if not quiet:
        for note in record["notes"]:
            print_note(note)
        for sentence in record["not_checked"]:
            print_warning(f"not checked: {sentence}.")


@contextlib.contextmanager
def _gathered_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Keep what the model and torch warn of, which would else stand in the middle of the report."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def _told_warnings(warned: list[warnings.WarningMessage]) -> list[str]:
    """Give each warning once, a sentence each."""
    lines = [str(warning.message).strip().partition("\n")[0].rstrip(".") for warning in warned]
    return [f"a warning on the way: {line[:_WARNING_LENGTH]}" for line in dict.fromkeys(filter(None, lines))]


@contextlib.contextmanager
def _progress(is_silent: bool) -> Iterator[Callable[[str], None]]:
    """Show what is being done, on a terminal alone."""
    from rich.console import Console

    console = Console(stderr=True)
    if is_silent or not console.is_terminal:
        yield lambda _sentence: None
        return
    with console.status("starting") as status:
        yield status.update
