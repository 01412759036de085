"""Model files of every kind through `deconv check-grad`: read safely, or refused in one sentence with nothing run."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from gradient_cases import FIXTURES
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.errors import InputRefusedError
from deconv_cli.gradients.exported_module import ExportedModule
from deconv_cli.models.exported_program import read_exported_program

LENET = f"{FIXTURES / 'lenet.py'}:LeNet5"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class CutNet(Net):
    def forward(self, x):
        return self.head(self.body(x).detach())  # the cut of the exported program


class MarkerOnLoad:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """A path that hostile files try to make; it must never be there."""
    path = tmp_path / "was_run"
    yield path
    assert not path.exists()


@pytest.fixture
def lenet_class():
    from gradient_cases import load_fixture

    return load_fixture("lenet").LeNet5


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A LeNet-5 saved whole by a script, so that its class is `__main__.LeNet5`."""
    from gradient_cases import load_fixture

    fixture = load_fixture("lenet")
    import sys

    monkeypatch.setattr(fixture.LeNet5, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "LeNet5", fixture.LeNet5, raising=False)
    path = tmp_path / "lenet.pt"
    torch.save(fixture.LeNet5(), path)
    return path


class TestRead:
    def test_a_module_saved_whole(self, deconv, whole):
        report = deconv("check-grad", whole, "--model", LENET, "--json").report
        assert report["model"]["class"] == "LeNet5"
        assert report["counts"] == {"OK": 10}
        assert report["data"]["kind"] == "synthetic"
        assert any("conv1" in note for note in report["notes"])

    def test_its_class_may_be_allowed_by_name(self, deconv, whole):
        words = ["check-grad", whole, "--model", f"{FIXTURES / 'lenet.py'}:cured_loss"]
        deconv(*words, "--allow-global", "__main__.LeNet5", "--input-shape", "2,1,32,32")

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".weird"])
    def test_weights_alone(self, deconv, lenet_class, tmp_path, suffix):
        path = tmp_path / f"weights{suffix}"
        state = lenet_class().state_dict()
        save_file(state, path) if suffix != ".pt" else torch.save(state, path)
        report = deconv("check-grad", path, "--model", LENET, "--json").report
        assert report["model"]["kind"] == ("PyTorch" if suffix == ".pt" else "safetensors")
        assert report["counts"] == {"OK": 10}

    def test_a_checkpoint(self, deconv, lenet_class, tmp_path):
        state = {f"module.{name}": tensor for name, tensor in lenet_class().state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pt")
        report = deconv("check-grad", tmp_path / "checkpoint.pt", "--model", LENET, "--json").report
        assert any("'state_dict'" in note for note in report["notes"])

    @pytest.mark.parametrize(
        ("build", "shape"),
        [
            (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(3)), "2,1,6,6"),
            (lambda: nn.LSTM(3, 4, batch_first=True), "2,5,3"),
            (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1), "2,5,8"),
        ],
        ids=["sequential", "lstm", "transformer"],
    )
    @pytest.mark.filterwarnings("ignore:Lazy modules")
    def test_modules_of_torch_need_no_class(self, deconv, tmp_path, build, shape):
        model = build()
        model(torch.zeros(*(int(size) for size in shape.split(","))))
        torch.save(model, tmp_path / "model.pt")
        deconv("check-grad", tmp_path / "model.pt", "--input-shape", shape, "-q")

    def test_an_exported_program(self, deconv, tmp_path):
        path = tmp_path / "program.bin"
        with path.open("wb") as stream:
            torch.export.save(torch.export.export(Net(), (torch.randn(5, 4),)), stream)
        report = deconv("check-grad", path, "--json").report
        assert report["data"] == {"kind": "stored", "inputs": ["[5, 4] float32"], "seed": 0}
        assert report["mode"] == "exported"
        assert report["counts"] == {"OK": 4}

    def test_an_exported_program_tells_the_line(self, deconv, tmp_path):
        path = tmp_path / "program.pt2"
        torch.export.save(torch.export.export(CutNet(), (torch.randn(5, 4),)), path)
        report = deconv("check-grad", path, "--json", expect=ExitCode.FAULT_FOUND).report
        (fault,) = report["faults"]
        assert fault["parameters"] == ["body.weight", "body.bias"]
        (cause,) = fault["causes"]
        assert (cause["operation"], cause["file"]) == (".detach()", __file__)
        assert "the cut of the exported program" in Path(__file__).read_text().splitlines()[cause["line"] - 1]

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_torchscript_file_that_is_trusted(self, deconv, tmp_path):
        path = tmp_path / "script.pt"
        torch.jit.save(torch.jit.script(Net()), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        deconv("check-grad", path, "--trust-file", digest, "--input-shape", "3,4", "-q")


class TestRefused:
    def refuse(self, refuses, path, *words, says):
        return refuses("check-grad", path, *words, code=ExitCode.INPUT_REFUSED, says=says)

    def test_a_hostile_pickle(self, refuses, tmp_path, marker):
        torch.save({"weight": torch.zeros(2), "extra": MarkerOnLoad(marker)}, tmp_path / "model.pt")
        sentence = self.refuse(refuses, tmp_path / "model.pt", says=["mkdir", "--allow-global"])
        assert "weights_only=False" not in sentence

    def test_a_hostile_pickle_of_the_old_kind(self, refuses, tmp_path, marker):
        (tmp_path / "model.pt").write_bytes(pickle.dumps(MarkerOnLoad(marker), protocol=2))
        self.refuse(refuses, tmp_path / "model.pt", says="'")

    def test_a_hostile_pickle_under_another_name(self, refuses, tmp_path, marker):
        torch.save(MarkerOnLoad(marker), tmp_path / "model.safetensors")
        self.refuse(refuses, tmp_path / "model.safetensors", says="mkdir")

    def test_a_hostile_pickle_beside_a_class_that_is_named(self, refuses, whole, tmp_path, marker):
        model = torch.load(whole, weights_only=False)
        model.extra = MarkerOnLoad(marker)
        torch.save(model, tmp_path / "model.pt")
        self.refuse(refuses, tmp_path / "model.pt", "--model", LENET, says="mkdir")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_torchscript_file(self, refuses, tmp_path):
        path = tmp_path / "model.pt"
        torch.jit.save(torch.jit.script(Net()), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.refuse(refuses, path, says=["TorchScript", f"--trust-file {digest}"])
        self.refuse(refuses, path, "--trust-file", "0" * 64, says=["not the file", digest])

    def test_a_class_that_is_not_there(self, refuses, whole):
        self.refuse(refuses, whole, says=["__main__.LeNet5", "--model"])

    @pytest.mark.parametrize("n_bytes", [3, 100, 2000])
    def test_a_file_cut_short(self, refuses, whole, tmp_path, n_bytes):
        (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:n_bytes])
        self.refuse(refuses, tmp_path / "cut.pt", "--model", LENET, says="cut.pt")

    def test_an_archive_cut_in_the_middle(self, refuses, whole, tmp_path):
        content = bytearray(whole.read_bytes())
        content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
        (tmp_path / "cut.pt").write_bytes(content[:-400])
        self.refuse(refuses, tmp_path / "cut.pt", "--model", LENET, says="cut.pt")

    def test_safetensors_cut_short(self, refuses, lenet_class, tmp_path):
        save_file(lenet_class().state_dict(), tmp_path / "cut.safetensors")
        content = (tmp_path / "cut.safetensors").read_bytes()
        (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
        self.refuse(refuses, tmp_path / "cut.safetensors", "--model", LENET, says="cut.safetensors")

    def test_weights_that_do_not_fit(self, refuses, lenet_class, tmp_path):
        state = lenet_class().state_dict()
        save_file({name: tensor for name, tensor in state.items() if name != "fc3.bias"}, tmp_path / "w.safetensors")
        self.refuse(refuses, tmp_path / "w.safetensors", "--model", LENET, says="lacks 'fc3.bias'")
        save_file(state | {"fc3.bias": torch.zeros(11)}, tmp_path / "w.safetensors")
        self.refuse(refuses, tmp_path / "w.safetensors", "--model", LENET, says=["(11,)", "(10,)"])

    def test_sparse_weights(self, refuses, tmp_path):
        torch.save({"weight": torch.eye(3).to_sparse()}, tmp_path / "w.pt")
        self.refuse(refuses, tmp_path / "w.pt", says="sparse")

    def test_no_model_at_all(self, refuses, tmp_path):
        (tmp_path / "x.pt").write_bytes(b"not a model at all, but long enough")
        self.refuse(refuses, tmp_path / "x.pt", says="not one of the model files")
        torch.save([1, 2], tmp_path / "list.pt")
        self.refuse(refuses, tmp_path / "list.pt", says="holds a list")


def holding_itself():
    model = nn.Sequential(nn.Linear(3, 2))
    model._modules["1"] = model
    return model


def with_members(**members):
    model = nn.Linear(3, 2)
    vars(model).update(members)
    return model


def with_member_of(group, name, value):
    model = nn.Linear(3, 2)
    vars(model)[group][name] = value
    return model


MALFORMED = {
    "holding itself": (holding_itself, "holds itself"),
    "empty": (lambda: nn.Linear.__new__(nn.Linear), "has no parameters"),
    "no dictionary": (lambda: with_members(_modules=None), "has no modules"),
    "a word for a parameter": (lambda: with_member_of("_parameters", "weight", "abc"), "a str among its parameters"),
    "a number for a buffer": (lambda: with_member_of("_buffers", "x", 3), "a int among its buffers"),
    "a number for a name": (lambda: with_member_of("_modules", 5, nn.ReLU()), "without a proper name"),
    "a member twice": (lambda: with_members(weight=3), "'weight' twice"),
    "a word for a hook": (lambda: with_member_of("_forward_hooks", 0, "abc"), "'_forward_hooks' that are no hooks"),
    "a method replaced": (lambda: with_members(forward=functional.relu), "method 'forward' replaced"),
    "a word for a flag": (lambda: with_members(training="yes"), "in training"),
}


class TestMalformedModules:
    @pytest.mark.parametrize("name", MALFORMED)
    def test_a_module_that_torch_did_not_put_together(self, refuses, tmp_path, name):
        build, says = MALFORMED[name]
        torch.save(build(), tmp_path / "model.pt")
        refuses("check-grad", tmp_path / "model.pt", code=ExitCode.INPUT_REFUSED, says=says)

    @pytest.mark.parametrize("size", ["wide", -3, 10**12, None])
    def test_sizes_that_are_none_are_not_guessed_from(self, refuses, tmp_path, size):
        torch.save(with_members(in_features=size), tmp_path / "model.pt")
        refuses("check-grad", tmp_path / "model.pt", code=ExitCode.USAGE, says="--input-shape")


class TestRefusedPrograms:
    """An exported program is refused for whatever torch.export.load would unpickle or evaluate."""

    @pytest.fixture
    def entries(self):
        stream = io.BytesIO()
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        torch.export.save(torch.export.export(Net(), (torch.randn(5, 4),), dynamic_shapes=dynamic), stream)
        with zipfile.ZipFile(stream) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    @pytest.fixture
    def check(self, refuses, tmp_path):
        def run(entries, *says):
            path = tmp_path / "program.pt2"
            self.write(path, entries)
            refuses("check-grad", path, code=ExitCode.INPUT_REFUSED, says=list(says))

        return run

    @staticmethod
    def entry(entries, ending):
        return next(name for name in entries if name.endswith(ending))

    def document(self, entries):
        return json.loads(entries[self.entry(entries, "models/model.json")])

    def with_document(self, entries, document):
        return entries | {self.entry(entries, "models/model.json"): json.dumps(document).encode()}

    @staticmethod
    def write(path, entries):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)

    def changed(self, entries, ending, old, new):
        name = self.entry(entries, ending)
        text = entries[name].decode()
        assert old in text
        return entries | {name: text.replace(old, new).encode()}

    def test_the_file_itself_is_read(self, entries, deconv, tmp_path):
        self.write(tmp_path / "program.pt2", entries)
        assert deconv("check-grad", tmp_path / "program.pt2", "--json").report["counts"] == {"OK": 4}

    def test_a_pickled_weight(self, entries, check, marker):
        torch.save(MarkerOnLoad(marker), stream := io.BytesIO())
        name = self.entry(entries, "weights/weight_0")
        changed = self.changed(entries, "weights_config.json", '"use_pickle": false', '"use_pickle": true')
        check(changed | {name: stream.getvalue()}, "pickled payload")

    def test_a_pickled_object(self, entries, check, marker):
        torch.save(MarkerOnLoad(marker), stream := io.BytesIO())
        folder = self.entry(entries, "archive_format").removesuffix("archive_format")
        check(entries | {f"{folder}data/constants/custom_obj_0": stream.getvalue()}, "custom_obj_0")

    def test_pickled_example_inputs(self, entries, check, marker):
        torch.save(MarkerOnLoad(marker), stream := io.BytesIO())
        check(entries | {self.entry(entries, "sample_inputs/model.pt"): stream.getvalue()}, "example inputs")

    def test_an_expression_that_runs_code(self, entries, check, marker):
        name = self.entry(entries, "models/model.json")
        document = json.loads(entries[name])
        hostile = f"__import__('os').mkdir({str(marker)!r})"
        seen = []

        def replace(found):
            if isinstance(found, dict):
                if "expr_str" in found:
                    found["expr_str"] = hostile
                    seen.append(found)
                for member in found.values():
                    replace(member)
            elif isinstance(found, list):
                for member in found:
                    replace(member)

        replace(document)
        assert seen
        check(entries | {name: json.dumps(document).encode()}, "expression")

    def test_a_guard_is_not_run(self, entries, deconv, tmp_path, marker):
        document = self.document(entries)
        document["guards_code"] = [f"__import__('os').mkdir({str(marker)!r})"]
        self.write(tmp_path / "program.pt2", self.with_document(entries, document))
        assert deconv("check-grad", tmp_path / "program.pt2", "--json").report["counts"] == {"OK": 4}
        assert not marker.exists()

    @pytest.mark.parametrize("key", ["metadata", "as_string", "guards_code"])
    def test_a_name_that_the_file_chose_exempts_nothing(self, entries, check, key, marker):
        document = self.document(entries)
        hostile = {"as_expr": {"expr_str": f"__import__('os').mkdir({str(marker)!r})", "hint": None}}
        document["graph_module"]["graph"]["sym_int_values"][key] = hostile
        check(self.with_document(entries, document), "expression")

    def test_an_argument_whose_name_is_code(self, entries, check, marker):
        document = self.document(entries)
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        signature["forward_arg_names"] = [f"x=__import__('os').mkdir({str(marker)!r})"]
        check(self.with_document(entries, document), "the name")

    def test_a_keyword_whose_name_is_code(self, entries, check, marker):
        document = self.document(entries)
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        tree = json.loads(signature["in_spec"])
        keywords = tree[1]["children_spec"][1]
        keywords["context"] = json.dumps([f"x=exec(bytes({list(str(marker).encode())}))"])
        keywords["children_spec"] = [{"type": None, "context": None, "children_spec": []}]
        signature["in_spec"] = json.dumps(tree)
        check(self.with_document(entries, document), "the tree")

    def test_no_string_of_a_program_is_run_wherever_it_stands(self, entries, tmp_path, marker):
        document = self.document(entries)
        path = tmp_path / "program.pt2"
        outcomes = set()
        for place in list(strings_of(document, ())):
            for hostile in (f"__import__('os').mkdir({str(marker)!r})", f'x");__import__("os").mkdir("{marker}");("'):
                changed = with_string(document, place, hostile)
                self.write(path, self.with_document(entries, changed))
                try:
                    module = ExportedModule(read_exported_program(path).module)
                    outcomes.add("read")
                    with contextlib.suppress(Exception):
                        module(torch.randn(5, 4))
                except InputRefusedError:
                    outcomes.add("refused")
                assert not marker.exists(), place
        assert outcomes == {"read", "refused"}

    @pytest.mark.parametrize(
        "target", ["torch.ops.aten.from_file.default", "_operator.methodcaller", "torch.load", "#x:y"]
    )
    def test_an_operator_that_reads_files_or_calls_anything(self, entries, check, target):
        check(
            self.changed(entries, "models/model.json", "torch.ops.aten.tanh.default", target),
            f"the operator '{target}'",
        )

    def test_a_tree_that_imports_a_module(self, entries, check):
        name = self.entry(entries, "models/model.json")
        document = json.loads(entries[name])
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        tree = json.loads(signature["in_spec"])
        tree[1]["context"] = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
        signature["in_spec"] = json.dumps(tree)
        check(entries | {name: json.dumps(document).encode()}, "tree")

    def test_a_program_cut_short(self, entries, check):
        name = self.entry(entries, "models/model.json")
        check(entries | {name: entries[name][:500]}, "not JSON")


def strings_of(found, place):
    """List the places of all strings of a document, its keys among them, as (path, is it a key)."""
    if isinstance(found, dict):
        for key, member in found.items():
            yield (*place, key), True
            yield from strings_of(member, (*place, key))
    elif isinstance(found, list):
        for index, member in enumerate(found):
            yield from strings_of(member, (*place, index))
    elif isinstance(found, str):
        yield place, False


def with_string(document, place, text):
    path, is_key = place
    changed = copy.deepcopy(document)
    owner = changed
    for step in path[:-1]:
        owner = owner[step]
    if is_key:
        owner[text] = owner.pop(path[-1])
    else:
        owner[path[-1]] = text
    return changed
