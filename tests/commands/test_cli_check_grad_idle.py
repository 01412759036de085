"""Options of `deconv check-grad` that would be ignored are refused; what was settled by itself is told."""

from __future__ import annotations

import hashlib

import pytest
import torch
from gradient_cases import FIXTURES
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from deconv_cli.commands.exit_codes import ExitCode

NETWORK = ("--model", f"{FIXTURES / 'detached.py'}:Base")
DRAWN = (*NETWORK, "--input-shape", "5,4")


@pytest.fixture
def code(tmp_path):
    """A file of models that the tests below name."""
    path = tmp_path / "net.py"
    path.write_text(
        "import warnings\n"
        "import torch\n"
        "from torch import nn\n"
        "class Sequence(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(4, 7)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x)\n"
        "class Channels(Sequence):\n"
        "    def forward(self, x):\n"
        "        return self.layer(x).transpose(1, 2)\n"
        "class Scalar(Sequence):\n"
        "    def forward(self, x):\n"
        "        return self.layer(x).square().mean()\n"
        "class Warning(Sequence):\n"
        "    def forward(self, x):\n"
        "        warnings.warn('the moon is full')\n"
        "        return self.layer(x)\n"
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embedding = nn.Embedding(9, 4)\n"
        "        self.head = nn.Linear(4, 9, bias=False)\n"
        "        self.head.weight = self.embedding.weight\n"
        "    def forward(self, x):\n"
        "        return self.head(self.embedding(x))\n"
        "def of_output(output):\n"
        "    return output.square().sum()\n"
    )
    return path


class TestIdleOptions:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--init", "{}"], "--init gives the arguments of --model"),
            ([*DRAWN, "--batch-size", "3"], "--batch-size"),
            ([*DRAWN, "--trust-file", "0" * 64], "--trust-file"),
            ([*DRAWN, "--allow-global", "math.sin"], "--allow-global"),
            ([*DRAWN, "--target-shape", "5,3"], "--loss projection takes none"),
            ([*DRAWN, "--batch-axis", "²"], "--batch-axis"),
            ([*NETWORK, "--input-shape", "5,4:int64:0.2..0.8"], "is empty"),
            ([*NETWORK, "--input-shape", "5,4:uint8:0..300"], "beyond its dtype"),
            ([*NETWORK, "--input-shape", "5,4:bool:0..1"], "bool"),
            ([*NETWORK, "--input-shape", "99999999999999999999,4"], "elements"),
        ],
    )
    def test_one_sentence(self, refuses, tmp_path, words, says):
        if words[0] == "--init":
            save_file({"weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
            words = [tmp_path / "weights.safetensors", *words]
        refuses("check-grad", *words, code=ExitCode.USAGE, says=says)

    def test_beside_data(self, refuses, data):
        words = ["check-grad", *NETWORK, "--data", data]
        refuses(*words, "--input-shape", "5,4", code=ExitCode.USAGE, says=["--input-shape", "--data"])
        given = [*words, "--loss", "cross-entropy"]
        refuses(*given, "--target-shape", "20:int64:0..3", code=ExitCode.USAGE, says=["--target-shape", "holds one"])
        refuses(*given, "--batch-axis", "1", "--batch-size", "3", code=ExitCode.USAGE, says="--batch-size")

    def test_a_target_of_the_data_that_nothing_uses_is_told(self, deconv, data, code):
        for loss in ("projection", f"{code}:of_output"):
            report = deconv("check-grad", *NETWORK, "--data", data, "--loss", loss, "--json").report
            assert f"the target of --data is not used: --loss {loss} takes none" in report["notes"]

    def test_a_target_shape_without_a_target_in_the_data_is_used(self, deconv, tmp_path):
        save_file({"input": torch.randn(20, 4)}, tmp_path / "data.safetensors")
        words = ["check-grad", *NETWORK, "--data", tmp_path / "data.safetensors", "--loss", "cross-entropy"]
        deconv(*words, "--target-shape", "16:int64:0..3", "-q")

    def test_for_kinds_of_files(self, refuses, tmp_path):
        model = nn.Linear(4, 3)
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        torch.save(model, tmp_path / "whole.pt")
        torch.export.save(torch.export.export(model, (torch.randn(5, 4),)), tmp_path / "program.pt2")
        weights = ["check-grad", tmp_path / "weights.safetensors", "--model", "torch.nn:Linear", "--init", "[4, 3]"]
        digest = hashlib.sha256((tmp_path / "program.pt2").read_bytes()).hexdigest()
        whole = ["check-grad", tmp_path / "whole.pt"]
        program = ["check-grad", tmp_path / "program.pt2", "--trust-file", digest]
        for words, says in (
            ([*weights, "--trust-file", digest], "--trust-file is for TorchScript"),
            ([*weights, "--allow-global", "math.sin"], "--allow-global is for pickled files"),
            ([*whole, "--trust-file", digest], "--trust-file is for TorchScript"),
            ([*whole, "--model", "torch.nn:Linear", "--init", "[4, 3]"], "--init makes a model"),
            ([*program, "--allow-global", "math.sin"], "--allow-global is for pickled files"),
            ([*program, "--mode", "train"], "--mode cannot change an exported program"),
            ([*program, "--model", "torch.nn:Linear"], "--model names what is computed"),
        ):
            refuses(*words, code=ExitCode.USAGE, says=says)


class TestData:
    def test_numbers_of_samples_that_differ(self, refuses, tmp_path):
        save_file({"input": torch.zeros(5, 4), "target": torch.zeros(4, 3)}, tmp_path / "data.safetensors")
        words = ["check-grad", *NETWORK, "--data", tmp_path / "data.safetensors", "--loss", "mse"]
        refuses(*words, code=ExitCode.INPUT_REFUSED, says=["same number of samples", "'input' 5", "'target' 4"])

    def test_no_samples(self, refuses, tmp_path):
        save_file({"input": torch.zeros(0, 4)}, tmp_path / "data.safetensors")
        words = ["check-grad", *NETWORK, "--data", tmp_path / "data.safetensors"]
        refuses(*words, code=ExitCode.INPUT_REFUSED, says="holds none")

    def test_time_is_not_cut_as_if_it_were_the_batch(self, deconv, tmp_path):
        save_file({"input": torch.randn(30, 2, 3)}, tmp_path / "data.safetensors")
        words = ["check-grad", "--model", "torch.nn:LSTM", "--init", "[3, 2]", "--data", tmp_path / "data.safetensors"]
        assert deconv(*words, "--batch-axis", "1", "--json").report["data"]["inputs"] == ["[30, 2, 3] float32"]


class TestClassesOnTheLastAxis:
    @pytest.mark.parametrize("loss", ["cross-entropy", "nll"])
    def test_synthetic_targets(self, deconv, code, loss):
        words = ["check-grad", "--model", f"{code}:Sequence", "--input-shape", "3,5,4", "--loss", loss, "--json"]
        # The model gives scores, which are no logarithms of probabilities, as nll wants them.
        report = deconv(*words, *(["--expect", "LOSS-INPUT:model"] if loss == "nll" else [])).report
        assert report["counts"] == {"OK": 2}
        assert any("(3, 5, 7) was read as (batch, steps, classes)" in note for note in report["notes"])

    @pytest.mark.parametrize(("name", "is_last"), [("Sequence", True), ("Channels", False)])
    def test_the_shape_of_the_target_decides(self, deconv, code, tmp_path, name, is_last):
        inputs, target = torch.randn(3, 5, 4), torch.randint(0, 7, (3, 5))
        save_file({"input": inputs, "target": target}, tmp_path / "data.safetensors")
        words = ["check-grad", "--model", f"{code}:{name}", "--data", tmp_path / "data.safetensors"]
        report = deconv(*words, "--loss", "cross-entropy", "--json").report
        assert any("(batch, steps, classes)" in note for note in report["notes"]) == is_last
        torch.manual_seed(0)
        layer = nn.Linear(4, 7)
        outputs = layer(inputs)
        loss = nn.functional.cross_entropy(outputs.reshape(15, 7), target.reshape(15))
        assert report["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
        out = tmp_path / "fisher.safetensors"
        words[0] = "fisher"
        deconv(*words, "--loss", "cross-entropy", "-o", out, "-q")
        expected = torch.zeros(7, 4)
        for x, y in zip(inputs, target, strict=True):
            of_sample = nn.functional.cross_entropy(layer(x), y, reduction="sum")
            expected += torch.autograd.grad(of_sample, layer.weight)[0].square() / 3
        torch.testing.assert_close(load_file(out)["layer.weight"], expected, rtol=1e-4, atol=1e-6)


def test_a_budget_without_end(deconv):
    assert deconv("check-grad", *DRAWN, "--budget", "inf", "--json").report["counts"] == {"OK": 4}


def test_warnings_become_notes(deconv, code):
    done = deconv("check-grad", "--model", f"{code}:Warning", "--input-shape", "3,4")
    assert done.stderr.count("the moon is full") == 1
    assert "note: a warning on the way: the moon is full" in done.stderr


class TestFiles:
    def test_tied_weights_that_are_stored_once(self, deconv, refuses, code, tmp_path):
        from deconv_cli.models.named_code import load_named

        model = load_named(f"{code}:Tied", "--model").value()
        save_model(model, str(tmp_path / "tied.safetensors"))
        assert len(load_file(tmp_path / "tied.safetensors")) == 1
        words = ["check-grad", tmp_path / "tied.safetensors", "--model", f"{code}:Tied"]
        report = deconv(*words, "--input-shape", "3,5:int64:0..9", "--json").report
        assert report["counts"] == {"OK": 1}
        assert report["parameters"][0]["weight_norm"] == pytest.approx(
            float(model.head.weight.detach().norm()), rel=1e-6
        )
        # What only looks alike is not tied.
        save_file({"embedding.weight": torch.zeros(9, 4)}, tmp_path / "half.safetensors")
        untied = code.read_text().replace("        self.head.weight = self.embedding.weight\n", "")
        (tmp_path / "untied.py").write_text(untied)
        words = ["check-grad", tmp_path / "half.safetensors", "--model", f"{tmp_path}/untied.py:Tied"]
        refuses(*words, code=ExitCode.INPUT_REFUSED, says="lacks 'head.weight'")
