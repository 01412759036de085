"""What do deconv, torch's gradcheck and anomaly mode, and torchtest2 say of mistakes, and of models without one?"""

from __future__ import annotations

import importlib.util
import linecache
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import deconv_cli
from benchmarks.measuring import Case as BenchmarkCase
from benchmarks.measuring import Figures, Scale
from benchmarks.printing import Report, Table, Target, number, ratio, table, word
from deconv_cli.gradients.losses import projection, user_loss

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


@dataclass(frozen=True)
class Fixture:
    """A network with one fault, or with none.

    Attributes:
        fault: what is wrong with it.
        file: under tests/fixtures, or a script of script_catalogue.py there.
        build: name of the class or function.
        shape: of the input.
        loss: name of the loss in the same file, None for a fixed random weight of every output.
        target: drawn for the loss.
        classes: the target holds classes and not numbers.
    """

    fault: str
    file: str
    build: str
    shape: tuple[int, ...]
    loss: str | None = None
    target: tuple[int, ...] | None = None
    classes: int = 0


PLANTED = [
    Fixture("nothing (LeNet-5)", "lenet", "LeNet5", (3, 1, 32, 32), "cured_loss", (3,), 10),
    Fixture("nothing (batch norm)", "healthy", "Normalized", (4, 3, 8, 8)),
    Fixture("loss wrapped by Variable", "lenet", "LeNet5", (3, 1, 32, 32), "wrapped_loss", (3,), 10),
    Fixture("loss made of comparisons", "range_loss", "Regressor", (16, 3), "counted_loss", (16, 1)),
    Fixture("its piecewise cure", "range_loss", "Regressor", (16, 3), "piecewise_loss", (16, 1)),
    Fixture("detach", "detached", "Detach", (5, 4)),
    Fixture("detach on one of two ways", "detached", "PartDetach", (5, 4)),
    Fixture("item()", "detached", "Item", (5, 4)),
    Fixture("a layer never used", "detached", "Unused", (5, 4)),
    Fixture("a layer not in the loss", "detached", "NotInLoss", (5, 4)),
    Fixture("round", "dying", "Round", (5, 4)),
    Fixture("dead ReLU", "dying", "DeadRelu", (5, 4)),
    Fixture("sqrt at 0", "dying", "SqrtAtZero", (5, 4)),
    Fixture("log of a negative number", "dying", "LogOfNegative", (5, 4)),
    Fixture("saturated softmax", "dying", "SaturatedSoftmax", (5, 4)),
    Fixture("bias before batch norm", "dying", "BiasBeforeNorm", (4, 2, 8, 8)),
    Fixture("vanishing", "dying", "DeepSigmoid", (5, 8)),
    Fixture("a kink", "dying", "Corner", (3,)),
    Fixture("samples leak", "mixing", "Leak", (5, 4)),
    Fixture("in-place write", "mixing", "InPlace", (5, 4)),
    Fixture("LSTM by hand, right", "hand_lstm", "Net", (3, 5, 3)),
    Fixture("LSTM by hand, one gate wrong", "lstm_square_of_g_missing", "Net", (3, 5, 3)),
    Fixture("tangent convolution, right", "tangent_convolution", "Net", (2, 6, 6)),
    Fixture("tangent convolution, wrong", "tangent_square_missing", "Net", (2, 6, 6)),
    Fixture("twice the gradient, mean loss", "wrong", "DoubledNet", (4, 1000)),
    Fixture("1 of 1000 elements off by 1 %", "wrong", "OneOffNet", (4, 1000)),
    Fixture("a missing sum", "wrong", "NoSumNet", (4, 1000)),
]


def load(file: str) -> Any:  # noqa: ANN401
    """Import a file of fixtures, or a script of the script catalogue."""
    name = f"fixture_{file}"
    if name not in sys.modules and not (FIXTURES / f"{file}.py").exists():
        catalogue = load("script_catalogue")
        text = catalogue.SOUND[file] if file in catalogue.SOUND else catalogue.FAULTS[file].text
        sys.modules[name] = ModuleType(name)
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), vars(sys.modules[name]))
    elif name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{file}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@dataclass(frozen=True, eq=False)
class Case:
    """A network made, with its data."""

    model: nn.Module
    inputs: torch.Tensor
    target: torch.Tensor | None
    function: Callable[..., Any] | None

    @classmethod
    def make(cls, fixture: Fixture, dtype: torch.dtype) -> Case:
        """Make the same case each time."""
        module = load(fixture.file)
        torch.manual_seed(0)
        model = getattr(module, fixture.build)().to(dtype)
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(fixture.shape, generator=generator, dtype=torch.float64).to(dtype)
        target = None
        if fixture.target is not None and fixture.classes:
            target = torch.randint(0, fixture.classes, fixture.target, generator=generator)
        elif fixture.target is not None:
            target = torch.zeros(fixture.target, dtype=dtype)
        return cls(model, inputs, target, None if fixture.loss is None else getattr(module, fixture.loss))

    def loss(self, output: Any) -> Any:  # noqa: ANN401
        """Compute the loss."""
        if self.function is None:
            return projection(output)
        return user_loss(self.function, has_target=self.target is not None)(output, self.target)


def deconv(fixture: Fixture) -> str:
    """List the verdicts with the lines that deconv names."""
    case = Case.make(fixture, torch.float32)
    found = deconv_cli.check_gradients(case.model, case.inputs, loss=case.function, target=case.target)
    lines = []
    for fault in found.faults():
        places = {f"`{c.location.code}`" if c.location.source else str(c.location) for c in fault.causes}
        lines.append(f"{fault.verdict}: {', '.join(sorted(places))}")
    known = {fault.verdict for fault in found.faults()}
    lines += [
        f"{f.verdict}: `{f.causes[0].location.code}`" for f in found.general if f.causes and f.verdict not in known
    ]
    remarks = ("NONDIFFERENTIABLE", "ZERO BY CONSTRUCTION")
    lines += sorted({f"{f.verdict} ({f.name})" for f in found.parameters if f.verdict in remarks})
    return "; ".join(lines) or "OK"


def gradcheck(fixture: Fixture, *, fast: bool) -> str:
    """Run torch.autograd.gradcheck over the parameters, in float64."""
    return gradcheck_of(Case.make(fixture, torch.float64), fast=fast)


def gradcheck_of(case: Case, *, fast: bool) -> str:
    """Run it on a case."""
    parameters = {name: p for name, p in case.model.named_parameters() if p.requires_grad}

    def function(*values: torch.Tensor) -> Any:  # noqa: ANN401
        replaced = dict(zip(parameters, values, strict=True))
        return case.loss(torch.func.functional_call(case.model, replaced, (case.inputs,)))

    values = tuple(p.detach().clone().requires_grad_() for p in parameters.values())
    if sum(value.numel() for value in values) > 5000 and not fast:
        return "not run (too slow)"
    try:
        torch.autograd.gradcheck(function, values, fast_mode=fast)
    except Exception as error:  # noqa: BLE001
        return f"raises: {_first(error)}"
    return "passes"


def anomaly(fixture: Fixture) -> str:
    """Run backward under torch.autograd.detect_anomaly."""
    return anomaly_of(Case.make(fixture, torch.float32))


def anomaly_of(case: Case) -> str:
    """Run it on a case."""
    try:
        with torch.autograd.detect_anomaly():
            case.loss(case.model(case.inputs)).backward()
    except Exception as error:  # noqa: BLE001
        return f"raises: {_first(error)}"
    return "silent"


def torchtest2(fixture: Fixture) -> str:
    """Run the checks of torchtest2 that are on by default, and its gradcheck."""
    return torchtest2_of(Case.make(fixture, torch.float32))


def torchtest2_of(case: Case) -> str:
    """Run it on a case."""
    try:
        from torchtest2 import check_model
    except ImportError:
        return "not installed"
    try:
        report = check_model(
            case.model,
            case.inputs,
            case.target,
            loss_fn=lambda output, *_: case.loss(output),
            gradcheck=True,
            skip=("overfit_batch",),
        )
    except Exception as error:  # noqa: BLE001
        return f"raises: {_first(error)}"
    failures, warned = ([result.name for result in found] for found in (report.failures, report.warnings))
    lines = [f"fails {', '.join(failures)}"] * bool(failures) + [f"warns of {', '.join(warned)}"] * bool(warned)
    return "; ".join(lines) or "passes"


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:90].replace("|", "/")


class CatalogueCase(Case):
    """A case of catalogue.py or architectures.py: mistakes that people make, and sound models that resemble them."""

    @classmethod
    def of(cls, build: Callable[[], Any], dtype: torch.dtype) -> CatalogueCase:
        """Make the same case each time."""
        torch.manual_seed(0)
        found = build()
        inputs = found.inputs.to(dtype) if found.inputs.is_floating_point() else found.inputs
        return cls(found.model.to(dtype), inputs, found.target, found.loss)


class OfFirstInput(nn.Module):
    """A network that takes several tensors, with all of them but the first one kept."""

    def __init__(self, network: nn.Module, others: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.network = network
        self.others = nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in others)

    def forward(self, first: torch.Tensor) -> Any:  # noqa: ANN401
        """Run the network."""
        return self.network(first, *self.others)


def sound_cases() -> dict[str, Callable[[], Any]]:
    """Gather the sound models of both files of fixtures."""
    catalogue, networks = load("catalogue"), load("architectures").NETWORKS

    def case_of(make: Callable[[], Any]) -> Callable[[], Any]:
        def build() -> Any:  # noqa: ANN401  a Case of the catalogue
            network, (first, *others) = make()
            return catalogue.Case(OfFirstInput(network, tuple(others)) if others else network, first)

        return build

    return catalogue.SOUND | {name: case_of(make) for name, make in networks.items()}


def finds_fault(build: Callable[[], Any], lines: frozenset[int]) -> tuple[bool, bool]:
    """Return whether deconv finds a fault, and on one of the given lines."""
    case = CatalogueCase.of(build, torch.float32)
    found = deconv_cli.check_gradients(case.model, case.inputs, loss=case.function, target=case.target, budget=10.0)
    faults = [*found.faults(), *(g for g in found.general if g.is_fault or g.is_undecided)]
    return bool(faults), not lines or any(cause.location.line in lines for f in faults for cause in f.causes)


@dataclass(frozen=True)
class Tool:
    """A checker: what it says of a planted fault, and whether it objects to a case of the catalogue."""

    describe: Callable[[Fixture], str]
    objects: Callable[[Case], bool]
    dtype: torch.dtype = torch.float32
    peer: str | None = None


DECONV = "deconv"
OTHERS = {
    "gradcheck": Tool(
        lambda fixture: gradcheck(fixture, fast=False),
        lambda case: gradcheck_of(case, fast=False) != "passes",
        torch.float64,
    ),
    "gradcheck, fast": Tool(
        lambda fixture: gradcheck(fixture, fast=True),
        lambda case: gradcheck_of(case, fast=True) != "passes",
        torch.float64,
    ),
    "anomaly mode": Tool(anomaly, lambda case: anomaly_of(case) != "silent"),
    "torchtest2": Tool(
        torchtest2,
        lambda case: "fails" in torchtest2_of(case) or "raises" in torchtest2_of(case),
        peer="torchtest2",
    ),
}


def cases(scale: Scale) -> list[BenchmarkCase]:
    """List what is measured."""
    n = scale.pick(None, 2)
    others = [BenchmarkCase(name, ask_other, {"name": name, "n": n}, tool.peer) for name, tool in OTHERS.items()]
    return [BenchmarkCase(DECONV, ask_deconv, {"n": n}), *others]


def ask_deconv(n: int | None) -> Figures:
    """Check the planted faults, and the first `n` cases of each kind in the catalogue."""
    warnings.simplefilter("ignore")
    source = (FIXTURES / "catalogue.py").read_text(encoding="utf-8").splitlines()
    counts: Counter[str] = Counter()
    wrongly: list[str] = []
    broken, sound = _first_of(load("catalogue").BROKEN, n), _first_of(sound_cases(), n)
    for name, build in broken.items():
        lines = frozenset(k for k, line in enumerate(source, start=1) if line.endswith(f"# {name}"))
        is_found, is_on_line = finds_fault(build, lines)
        counts["found"] += is_found
        counts["on_line"] += is_found and is_on_line
        wrongly += [] if is_found and is_on_line else [name]
    for name, build in sound.items():
        is_accused = finds_fault(build, frozenset())[0]
        counts["accused"] += is_accused
        wrongly += [name] * is_accused
    figures: Figures = {"n_broken": len(broken), "n_sound": len(sound), "not_as_meant": ", ".join(wrongly) or "-"}
    return figures | {key: counts[key] for key in ("found", "on_line", "accused")} | _planted(deconv, n)


def ask_other(name: str, n: int | None) -> Figures:
    """Let another tool check the same; what it raises counts as found."""
    warnings.simplefilter("ignore")
    tool = OTHERS[name]
    broken, sound = _first_of(load("catalogue").BROKEN, n), _first_of(sound_cases(), n)
    figures: Figures = {"n_broken": len(broken), "n_sound": len(sound)}
    for key, several in (("found", broken), ("accused", sound)):
        figures[key] = sum(tool.objects(CatalogueCase.of(build, tool.dtype)) for build in several.values())
    return figures | _planted(tool.describe, n)


def _first_of(several: dict[str, Any], n: int | None) -> dict[str, Any]:
    return dict(list(several.items())[:n])


def _planted(describe: Callable[[Fixture], str], n: int | None) -> Figures:
    return {fixture.fault: describe(fixture) for fixture in PLANTED[:n]}


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    ours = outcomes[DECONV]
    targets = [
        Target("mistakes found by deconv", 100 * 66 / 69, _percent(ours, "found", "n_broken"), True, " %"),
        Target("mistakes found on their lines", 100 * 62 / 69, _percent(ours, "on_line", "n_broken"), True, " %"),
        Target("sound models that deconv accuses", 100 / 60, _percent(ours, "accused", "n_sound"), False, " %"),
    ]
    counts = table(
        "Mistakes of real training code, and sound models that resemble them. Whatever a tool raises counts as found.",
        "tool",
        outcomes,
        [
            ("found", lambda figures: _of(figures, "found", "n_broken")),
            ("on the line", lambda figures: _of(figures, "on_line", "n_broken")),
            ("sound models accused", lambda figures: _of(figures, "accused", "n_sound")),
            word("not as it is meant", "not_as_meant"),
        ],
    )
    rows = [
        [fixture.fault, *(str(figures.get(fixture.fault, "–")) for figures in outcomes.values())] for fixture in PLANTED
    ]
    planted = Table("Small networks with one planted fault, or with none.", ["planted", *outcomes], rows)
    return Report("Gradients", targets, [counts, planted])


def _percent(figures: Figures, count: str, of: str) -> float | None:
    share = ratio(number(figures, count), number(figures, of))
    return None if share is None else 100 * share


def _of(figures: Figures, count: str, of: str) -> str:
    return f"{figures[count]} of {figures[of]}" if count in figures else "none named"
