"""Model files of every kind through `deconv check-grad`; what reading them refuses is tested in tests/models."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from gradient_cases import FIXTURES, load_fixture
from hostile_pickles import MakesFolder, with_members
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from deconv_cli.commands.exit_codes import ExitCode

LENET = f"{FIXTURES / 'lenet.py'}:LeNet5"


Net = load_fixture("detached").Base


class CutNet(Net):
    def forward(self, x):
        return self.head(self.body(x).detach())  # the cut of the exported program


@pytest.fixture
def lenet_class():
    return load_fixture("lenet").LeNet5


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A LeNet-5 saved whole by a script, so that its class is `__main__.LeNet5`."""
    fixture = load_fixture("lenet")
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
            torch.export.save(torch.export.export(CutNet(), (torch.randn(5, 4),)), stream)
        words = ["check-grad", path, "--trust-file", sha256(path), "--json"]
        report = deconv(*words, expect=ExitCode.FAULT_FOUND).report
        assert report["data"] == {"kind": "stored", "inputs": ["[5, 4] float32"], "seed": 0}
        assert report["mode"] == "exported"
        (fault,) = report["faults"]
        assert fault["parameters"] == ["body.weight", "body.bias"]
        (cause,) = fault["causes"]
        assert (cause["operation"], cause["file"]) == (".detach()", __file__)
        assert (
            "the cut of the exported program"
            in Path(__file__).read_text(encoding="utf-8").splitlines()[cause["line"] - 1]
        )

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_torchscript_file_that_is_trusted(self, deconv, tmp_path):
        path = tmp_path / "script.pt"
        torch.jit.save(torch.jit.script(Net()), path)
        deconv("check-grad", path, "--trust-file", sha256(path), "--input-shape", "3,4", "-q")

    def test_tied_weights_that_are_stored_once(self, deconv, refuses, tmp_path):
        from deconv_cli.models.named_code import load_named

        body = (
            "from torch import nn\n"
            "class Tied(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.embedding = nn.Embedding(9, 4)\n"
            "        self.head = nn.Linear(4, 9, bias=False)\n"
            "        self.head.weight = self.embedding.weight\n"
            "    def forward(self, x):\n"
            "        return self.head(self.embedding(x))\n"
        )
        (tmp_path / "tied.py").write_text(body)
        model = load_named(f"{tmp_path}/tied.py:Tied", "--model").value()
        save_model(model, str(tmp_path / "tied.safetensors"))
        assert len(load_file(tmp_path / "tied.safetensors")) == 1
        words = ["check-grad", tmp_path / "tied.safetensors", "--model", f"{tmp_path}/tied.py:Tied"]
        report = deconv(*words, "--input-shape", "3,5:int64:0..9", "--json").report
        assert report["counts"] == {"OK": 1}
        norm = float(model.head.weight.detach().norm())
        assert report["parameters"][0]["weight_norm"] == pytest.approx(norm, rel=1e-6)
        # Weights that only look alike are not tied.
        save_file({"embedding.weight": torch.zeros(9, 4)}, tmp_path / "half.safetensors")
        (tmp_path / "untied.py").write_text(body.replace("        self.head.weight = self.embedding.weight\n", ""))
        words = ["check-grad", tmp_path / "half.safetensors", "--model", f"{tmp_path}/untied.py:Tied"]
        refuses(*words, code=ExitCode.INPUT_REFUSED, says="lacks 'head.weight'")


class TestRefused:
    def refuse(self, refuses, path, *words, says):
        return refuses("check-grad", path, *words, code=ExitCode.INPUT_REFUSED, says=says)

    def test_a_hostile_pickle(self, refuses, tmp_path):
        torch.save({"weight": torch.zeros(2), "extra": MakesFolder(tmp_path / "was_run")}, tmp_path / "model.pt")
        sentence = self.refuse(refuses, tmp_path / "model.pt", says=["mkdir", "--allow-global NAME"])
        assert "weights_only=False" not in sentence
        assert not (tmp_path / "was_run").exists()

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_programs_that_are_not_trusted(self, refuses, tmp_path):
        torch.jit.save(torch.jit.script(Net()), tmp_path / "script.pt")
        torch.export.save(torch.export.export(Net(), (torch.randn(5, 4),)), tmp_path / "program.pt2")
        for path, kind in ((tmp_path / "script.pt", "TorchScript"), (tmp_path / "program.pt2", "exported program")):
            self.refuse(refuses, path, says=[kind, f"--trust-file {sha256(path)}"])
            self.refuse(refuses, path, "--trust-file", "0" * 64, says=["not the file", sha256(path)])

    def test_a_class_that_is_not_there(self, refuses, whole):
        self.refuse(refuses, whole, says=["__main__.LeNet5", "--model file.py:Class"])


class TestModulesWithMembersOfTheWrongKind:
    """What reading lets through fails where the model is run, and is a sentence there."""

    @pytest.mark.parametrize("members", [{"weight": 3}, {"_forward_hooks": {0: "abc"}}, {"_forward_pre_hooks": None}])
    def test_a_model_that_cannot_be_run(self, refuses, tmp_path, members):
        torch.save(with_members(**members), tmp_path / "model.pt")
        words = ["check-grad", tmp_path / "model.pt", "--input-shape", "2,3"]
        refuses(*words, code=ExitCode.USAGE, says="cannot be run")

    @pytest.mark.parametrize("size", ["wide", -3, 10**12, None])
    def test_sizes_that_are_none_are_not_guessed_from(self, refuses, tmp_path, size):
        torch.save(with_members(in_features=size), tmp_path / "model.pt")
        refuses("check-grad", tmp_path / "model.pt", code=ExitCode.USAGE, says="--input-shape")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
