"""Every import of the package points the way that the design draws, and only the commands speak and exit."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

import deconv_cli

PACKAGE = Path(deconv_cli.__file__).parent

BELOW_OPERATORS = {
    *("allocator", "errors", "vocabulary"),
    "measured_light",
    *("parts", "noise_model", "layer_options", "settings", "prompt_sentences"),
}
BELOW_SOLVERS = BELOW_OPERATORS | {"operators", "regularizers", "kernels"}
BELOW_WORKFLOWS = BELOW_SOLVERS | {"solvers", "diagnostics", "gradients", "tone_curve"}

# What each layer may import of the package, beside itself. All that is not listed is a broken rule.
ALLOWED = {
    "errors": set(),
    "vocabulary": {"errors"},
    "allocator": set(),
    "measured_light": {"errors", "vocabulary"},
    "parts": {"errors", "vocabulary"},
    "noise_model": {"errors"},
    "layer_options": {"errors", "vocabulary"},
    "settings": {"errors", "vocabulary", "parts", "noise_model", "layer_options"},
    "prompt_sentences": {"settings", "vocabulary"},
    "operators": BELOW_OPERATORS,
    "regularizers": BELOW_OPERATORS | {"operators"},
    "kernels": BELOW_OPERATORS | {"operators", "regularizers", "tone_curve", "gradients"},
    "solvers": BELOW_SOLVERS,
    "diagnostics": BELOW_SOLVERS | {"solvers"},
    "gradients": {"errors", "vocabulary", "parts"},
    "tone_curve": {"errors"},
    "io": BELOW_OPERATORS | {"tone_curve"},
    "models": BELOW_OPERATORS | {"io"},
    "workflows": BELOW_WORKFLOWS,
    "chains": BELOW_WORKFLOWS | {"workflows"},
    "schedulers": {"allocator", "errors", "vocabulary", "parts"},
    "blocks": BELOW_WORKFLOWS | {"workflows", "io", "schedulers"},
    "saved_files": BELOW_WORKFLOWS | {"io", "models"},
    "report": BELOW_WORKFLOWS | {"workflows", "chains", "blocks"},
    "commands": BELOW_WORKFLOWS
    | {
        "workflows",
        "chains",
        "schedulers",
        "blocks",
        "saved_files",
        "report",
        "io",
        "models",
        "deconv_cli",
    },
    "deconv_cli": BELOW_WORKFLOWS | {"workflows", "chains", "blocks", "saved_files"},
    "napari_plugin": {"deconv_cli", "measured_light", "tone_curve"},
    "__main__": {"commands"},
}
CODECS = {"tifffile", "PIL", "imagecodecs", "safetensors", "zarr", "astropy"}
DRAWING = {"jinja2"}
WINDOWS = {"napari", "magicgui", "qtpy"}
SLOW = {"torch", "numpy", *CODECS, *DRAWING}
SPEAKING = {"commands", "__main__"}
TORCH_FREE = {
    "allocator",
    "errors",
    "vocabulary",
    "parts",
    "noise_model",
    "layer_options",
    "settings",
    "prompt_sentences",
    "deconv_cli",
    "__main__",
}


@dataclass(frozen=True)
class Import:
    """One imported module and where it stands."""

    name: str
    line: int
    in_function: bool
    for_types: bool

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Module:
    """One parsed file of the package."""

    name: str
    place: str
    tree: ast.Module
    is_package: bool

    @property
    def layer(self) -> str:
        return layer_of(self.name)


def layer_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def read_package(folder: Path) -> dict[str, Module]:
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = ["deconv_cli", *path.relative_to(folder).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        place = f"deconv_cli/{path.relative_to(folder).as_posix()}"
        modules[name] = Module(name, place, ast.parse(path.read_text(encoding="utf-8")), is_package)
    return modules


def imports_of(module: Module, known: dict[str, Module]) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool, for_types: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, in_function, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.append(Import(inner if inner in known else base, node.lineno, in_function, for_types))
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for child in node.body:
                visit(child, in_function, True)
            for child in node.orelse:
                visit(child, in_function, for_types)
        else:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                visit(child, inside, for_types)

    visit(module.tree, False, False)
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def broken_rules(folder: Path) -> list[str]:
    """Give one sentence for each broken rule of a package in `folder`."""
    modules = read_package(folder)
    imports = {name: imports_of(module, modules) for name, module in modules.items()}
    broken: list[str] = []
    for name, module in modules.items():
        for item in imports[name]:
            broken += [f"{module.place}:{item.line}: {rule}." for rule in _rules_against(module, item)]
        broken += [f"{module.place}:{line}: {rule}." for line, rule in _speech(module)]
    broken += _slow_commands(modules, imports)
    broken += _cycles(modules, imports)
    return broken


def _rules_against(module: Module, item: Import) -> list[str]:
    layer, root = module.layer, item.root
    rules = []
    if layer not in ALLOWED:
        return [f"layer {layer} is not in the table of layers of design.md; give it a place there and here"]
    if root == "deconv_cli":
        target = layer_of(item.name)
        types_of_reading = layer == "commands" and item.for_types
        if target not in ALLOWED[layer] | {layer} and not types_of_reading:
            rules.append(f"{layer} never imports {target}, but {item.name} is imported")
    if root in ("typer", "rich") and layer != "commands":
        rules.append(f"only commands imports {root}, {layer} does not")
    if root == "click":
        rules.append("nobody imports click, typer carries its own")
    if root == "sys" and layer == "workflows":
        rules.append("workflows never import sys")
    if root == "torch" and layer in TORCH_FREE and not item.for_types:
        rules.append(f"{layer} never imports torch")
    if root in CODECS and layer not in ("io", "models") and (root, layer) != ("PIL", "report"):
        rules.append(f"only io imports {root}, {layer} does not")
    if root in DRAWING and layer != "report":
        rules.append(f"only report imports {root}, {layer} does not")
    if root in WINDOWS and layer != "napari_plugin":
        rules.append(f"only napari_plugin imports {root}, {layer} does not")
    if root == "tifffile" and not module.name.startswith("deconv_cli.io.codecs.tiff"):
        rules.append("only the modules io/codecs/tiff*.py import tifffile")
    return rules


def _speech(module: Module) -> list[tuple[int, str]]:
    if module.layer in SPEAKING:
        return []
    found = []
    for node in ast.walk(module.tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        raised = ast.unparse(node.exc).partition("(")[0] if isinstance(node, ast.Raise) and node.exc else ""
        if called in ("print", "pprint", "input"):
            found.append((node.lineno, f"only commands print, but here is {called}()"))
        if called in ("exit", "quit", "sys.exit", "os._exit", "os.abort") or raised == "SystemExit":
            found.append((node.lineno, f"only commands end the process, but here is {called or raised}"))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr", "sys.__stdout__"):
            found.append((node.lineno, f"only commands write to a stream, but here is {ast.unparse(node)}"))
    return found


def _slow_commands(modules: dict[str, Module], imports: dict[str, list[Import]]) -> list[str]:
    """Follow what loading a command loads, through every module, up to torch and its like."""
    broken = []
    for start in (name for name, module in modules.items() if module.layer in ("commands", "deconv_cli")):
        seen, waiting = {start}, [(start, [start])]
        while waiting:
            name, way = waiting.pop()
            for item in imports[name]:
                if item.in_function or item.for_types:
                    continue
                if item.root in SLOW:
                    place, steps = f"{modules[name].place}:{item.line}", " -> ".join([*way, item.root])
                    broken.append(f"{place}: loading {start} never loads {item.root}, but does: {steps}.")
                for reached in _loaded_with(item.name, modules) - seen:
                    seen.add(reached)
                    waiting.append((reached, [*way, reached]))
    return broken


def _loaded_with(name: str, modules: dict[str, Module]) -> set[str]:
    """A module and the packages around it, all of which run when it is imported."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & modules.keys()


def _cycles(modules: dict[str, Module], imports: dict[str, list[Import]]) -> list[str]:
    broken, done = [], set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        for item in imports[name]:
            if item.name not in modules:
                continue
            if item.name in way:
                circle = " -> ".join([*way[way.index(item.name) :], item.name])
                broken.append(f"{modules[name].place}:{item.line}: modules never import in a circle, but {circle}.")
            elif item.name not in done:
                visit(item.name, (*way, item.name))
        done.add(name)

    for name in modules:
        if name not in done:
            visit(name, (name,))
    return broken


def test_every_import_of_the_package_points_the_right_way():
    broken = broken_rules(PACKAGE)
    assert not broken, "\n".join(broken)


def test_the_checker_reads_the_whole_package():
    modules = read_package(PACKAGE)
    assert {"deconv_cli", "deconv_cli.errors", "deconv_cli.io.codecs.tiff", "deconv_cli.commands.app"} <= modules.keys()
    names = {item.name for module in modules.values() for item in imports_of(module, modules)}
    assert {"torch", "typer", "tifffile", "deconv_cli.errors", "deconv_cli.workflows.pipeline"} <= names


def write_package(folder: Path, files: dict[str, str]) -> Path:
    for place, source in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        for parent in path.relative_to(folder).parents:
            (folder / parent / "__init__.py").touch()
    return folder


CLEAN = {
    "errors.py": "class DeconvError(Exception): ...\n",
    "vocabulary.py": "from deconv_cli.errors import DeconvError\n",
    "operators/blur.py": "import torch\nfrom deconv_cli.errors import DeconvError\n",
    "io/codecs/tiff_reader.py": "import tifffile\n",
    "commands/run.py": (
        "from typing import TYPE_CHECKING\nimport typer\n"
        "if TYPE_CHECKING:\n    import torch\n    from deconv_cli.io.codecs import tiff_reader\n"
        "def run():\n    import torch\n    from deconv_cli.operators import blur\n    print(blur)\n    exit(0)\n"
    ),
}


def test_a_package_that_keeps_the_rules_passes(tmp_path):
    assert broken_rules(write_package(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(
    ("place", "source", "sentence"),
    [
        ("errors.py", "import torch\n", "deconv_cli/errors.py:1: errors never imports torch"),
        ("vocabulary.py", "def f():\n    import torch\n", "vocabulary.py:2: vocabulary never imports torch"),
        ("operators/a.py", "from deconv_cli.solvers import b\n", "a.py:1: operators never imports solvers"),
        ("io/a.py", "def f():\n    import tifffile\n", "a.py:2: only the modules io/codecs/tiff*.py import tifffile"),
        ("workflows/a.py", "import sys\n", "workflows never import sys"),
        ("workflows/a.py", "from PIL import Image\n", "only io imports PIL, workflows does not"),
        ("report/a.py", "def f():\n    import napari\n", "a.py:2: only napari_plugin imports napari, report does not"),
        (
            "commands/a.py",
            "from deconv_cli.operators import blur\n",
            "commands.a -> deconv_cli.operators.blur -> torch",
        ),
        ("commands/a.py", "import click\n", "nobody imports click"),
        ("__init__.py", "import torch\n", "loading deconv_cli never loads torch"),
        ("solvers/a.py", "print('hello')\n", "a.py:1: only commands print"),
        ("io/a.py", "import sys\nsys.stderr.write('hello')\n", "a.py:2: only commands write to a stream"),
        ("io/a.py", "import sys\n\nsys.exit(1)\n", "a.py:3: only commands end the process, but here is sys.exit"),
        ("toolbox/a.py", "import math\n", "layer toolbox is not in the table"),
        ("io/a.py", "from deconv_cli.io import a\n", "deconv_cli.io.a -> deconv_cli.io.a."),
        ("errors.py", "def f():\n    from deconv_cli import vocabulary\n", "never import in a circle"),
    ],
)
def test_the_checker_names_the_rule_that_a_made_up_source_breaks(tmp_path, place, source, sentence):
    broken = broken_rules(write_package(tmp_path, CLEAN | {place: source}))
    assert any(sentence in line for line in broken), broken
    assert all(line.startswith("deconv_cli/") and line.endswith(".") for line in broken)


ENTRY_POINTS = {"forward", "invert", "pseudo_inverse", "forward_taps", "fit_kernel"}
"""The entry points of the library."""
LAYERS = {"deconv_cli.kernels.receptive_field"}
"""A layer takes the arguments of torch's own layer, and its own."""
MAX_PARAMETERS = 8


def long_signatures(folder: Path) -> list[str]:
    """Name every function with too many parameters, except entry points and commands, whose options they are."""
    found = []
    for module in read_package(folder).values():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = node.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            n_parameters = len([name for name in names if name not in ("self", "cls")])
            is_entry = module.layer in ("workflows", "kernels") and node.name in ENTRY_POINTS
            is_free = module.layer == "commands" or is_entry or (module.name in LAYERS and node.name == "__init__")
            if n_parameters > MAX_PARAMETERS and not is_free:
                found.append(f"{module.place}:{node.lineno}: {node.name} takes {n_parameters} parameters.")
    return found


def test_functions_take_few_parameters():
    assert not long_signatures(PACKAGE), "\n".join(long_signatures(PACKAGE))


def test_a_long_signature_is_named(tmp_path):
    names = ", ".join("abcdefghi")
    write_package(tmp_path, {"solvers/a.py": f"def f({names}): ...\n", "commands/b.py": f"def g({names}): ...\n"})
    assert long_signatures(tmp_path) == ["deconv_cli/solvers/a.py:1: f takes 9 parameters."]


def test_no_two_modules_share_a_name():
    names = [Path(module.place).name for module in read_package(PACKAGE).values() if not module.is_package]
    assert sorted(names) == sorted(set(names))
