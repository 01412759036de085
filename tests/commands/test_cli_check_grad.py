"""`deconv check-grad` at the prompt: verdicts, exit codes, the report, accepted findings, and refusals."""

from __future__ import annotations

import os

import pytest
import torch
from gradient_cases import FIXTURES, blamed_line
from safetensors.torch import save_file
from torch import nn

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.user_code import running_user_code


def code(fixture: str, name: str) -> str:
    return f"{FIXTURES / fixture}.py:{name}"


BASE = ("--model", code("detached", "Base"))
NETWORK = (*BASE, "--input-shape", "5,4")
LSTM = ("--model", "torch.nn:LSTM", "--init", "[3, 4]")
DETACH = ("--model", code("detached", "Detach"), "--input-shape", "5,4")
LEAK = ("--model", code("mixing", "Leak"), "--input-shape", "4,4")
UNUSED = ("--model", code("detached", "Unused"), "--input-shape", "5,4")
BY_HAND = FIXTURES / "scripts" / "by_hand.py"


@pytest.fixture
def check(deconv):
    """Run the command with --json; gives the report."""
    return lambda *words, expect=ExitCode.SUCCESS: deconv("check-grad", *words, "--json", expect=expect).report


@pytest.fixture
def write(tmp_path):
    """Write a file of code below the imports."""

    def write(body: str, name: str = "net.py"):
        path = tmp_path / name
        path.write_text("import warnings\nimport torch\nfrom torch import nn\n" + body)
        return path

    return write


def net(forward: str, arguments: str = "self, x") -> str:
    """The code of a class with a layer from 4 to 7."""
    return (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(4, 7)\n"
        f"    def forward({arguments}):\n"
        f"        {forward}\n"
    )


class TestVerdicts:
    def test_healthy(self, deconv, check):
        assert deconv("check-grad", *NETWORK).stdout.splitlines()[-1] == "healthy: 4 parameters"
        assert deconv("check-grad", *NETWORK, "-q").stdout == "healthy: 4 parameters\n"
        report = check(*NETWORK, "--budget", "inf")
        assert (report["schema"], report["command"], report["exit_code"]) == (2, "check-grad", 0)
        assert (report["loss_name"], report["counts"]) == ("projection", {"OK": 4})
        assert report["data"] == {"kind": "synthetic", "inputs": ["[5, 4] float32"], "seed": 0}
        assert any("synthetic" in note for note in report["notes"])
        for parameter in report["parameters"]:
            comparison = parameter["comparison"]
            assert parameter["gradient_norm"] > 0
            assert comparison["error_bar"] < 1e-4 * abs(comparison["numeric"]) + 1e-9
            assert comparison["resolution"] < 1e-3
            assert comparison["autograd"] == pytest.approx(comparison["numeric"], rel=1e-3, abs=1e-8)

    def test_a_fault_has_its_line(self, deconv, check):
        done = deconv("check-grad", *DETACH, expect=ExitCode.FAULT_FOUND)
        line = f"detached.py:{blamed_line('detached', 'detach')}"
        told = done.stdout.splitlines()
        assert "DETACHED: body.weight, body.bias" in told
        assert [row for row in told if row.startswith("  at ") and line in row and "return h.detach()" in row]
        assert "  instead  return h" in told
        assert told[-1] == "faults: 2 of 4 parameters"
        (fault,) = check(*DETACH, expect=ExitCode.FAULT_FOUND)["faults"]
        (cause,) = fault["causes"]
        assert (cause["file"], cause["function"]) == (str(FIXTURES / "detached.py"), "middle")
        assert (cause["line"], cause["instead"]) == (blamed_line("detached", "detach"), "return h")

    def test_no_verdict(self, check):
        stopped = check(*NETWORK, "--budget", "0", expect=ExitCode.UNTRUSTWORTHY)
        assert (stopped["counts"], stopped["general"]) == ({"NOT CHECKED": 4}, [])
        noisy = check("--model", code("dying", "Unseeded"), "--input-shape", "4,4", expect=ExitCode.UNTRUSTWORTHY)
        assert (noisy["counts"], [finding["verdict"] for finding in noisy["general"]]) == ({"NOISY": 2}, ["NOISY"])

    def test_many_parameters_are_counted(self, deconv, write):
        path = write("model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(21)))\n")
        words = ["check-grad", "--model", f"{path}:model", "--input-shape", "5,3"]
        told = deconv(*words).stdout
        assert "and 42 more that are OK" in told
        assert "finite differences\n" not in told
        assert "20.weight" in deconv(*words, "--verbose").stdout

    def test_the_mode(self, check):
        words = ["--model", code("dying", "BiasBeforeNorm"), "--input-shape", "4,2,8,8"]
        assert check(*words)["counts"]["ZERO BY CONSTRUCTION"] == 1
        assert check(*words, "--mode", "eval")["counts"] == {"OK": 6}


class TestExpectations:
    def test_a_known_finding_is_accepted(self, deconv, check):
        deconv("check-grad", *UNUSED, "--expect", "UNUSED:spare.weight", "-q", expect=ExitCode.FAULT_FOUND)
        report = check(*UNUSED, "--expect", "UNUSED:spare.weight", "--expect", "UNUSED:spare.bias")
        expected = {p["name"] for p in report["parameters"] if p["expected"]}
        assert expected == {"spare.weight", "spare.bias"}
        assert report["summary"].startswith("Training can work except for the expected findings")
        done = deconv("check-grad", *UNUSED, "--expect", "unused:spare.*")
        assert "healthy: 6 parameters (2 expected)" in done.stdout
        done = deconv("check-grad", *UNUSED, "--expect", "DETACHED:spare.*", expect=ExitCode.FAULT_FOUND)
        assert "expected, but not found: DETACHED:spare.*" in done.stderr

    def test_a_line(self, deconv):
        words = ["check-grad", *DETACH, "-q", "--expect"]
        line = blamed_line("detached", "detach")
        for path in ("detached.py", "fixtures/./detached.py", FIXTURES / "detached.py"):
            deconv(*words, f"DETACHED:{path}:{line}")
        deconv(*words, "DETACHED:detached.py:1", expect=ExitCode.FAULT_FOUND)
        deconv(*words, f"DETACHED:ached.py:{line}", expect=ExitCode.FAULT_FOUND)

    def test_the_model_as_a_whole(self, deconv, check):
        report = check(*LEAK, expect=ExitCode.FAULT_FOUND)
        (finding,) = report["general"]
        assert (finding["verdict"], finding["causes"][0]["line"]) == ("BATCH-LEAK", blamed_line("mixing", "leak"))
        assert "samples leak into one another (BATCH-LEAK)." in report["summary"]
        deconv("check-grad", *LEAK, "--expect", "BATCH-LEAK:model", "-q")

    @pytest.mark.parametrize("text", ["UNUSED", "UNUSED:", "BROKEN:x", ":x", "UNUSD:x"])
    def test_what_is_no_expectation(self, refuses, text):
        words = ["check-grad", *UNUSED, "--expect", text]
        said = refuses(*words, code=ExitCode.USAGE, says=["VERDICT:NAME, such as UNUSED:head.weight", text])
        assert ("perhaps you mean UNUSED" in said) == (text == "UNUSD:x")
        assert len(said) < 140


class TestData:
    def test_of_a_file(self, check, tmp_path):
        tensors = {"input": torch.randn(40, 1, 32, 32), "target": torch.randint(0, 10, (40,))}
        save_file(tensors, tmp_path / "data.safetensors")
        words = ["--model", code("lenet", "LeNet5"), "--data", tmp_path / "data.safetensors"]
        report = check(*words, "--loss", "cross-entropy", "--batch-size", "3")
        assert (report["data"]["kind"], report["data"]["inputs"]) == ("given", ["[3, 1, 32, 32] float32"])
        assert not any("synthetic" in note for note in report["notes"])

    def test_arguments_by_name(self, deconv, write, tmp_path):
        path = write(net("return self.layer(zebra) * ape", "self, zebra, ape"))
        torch.save({"ape": torch.randn(5, 7), "zebra": torch.randn(5, 4)}, tmp_path / "data.pt")
        deconv("check-grad", "--model", f"{path}:Net", "--data", tmp_path / "data.pt", "-q")

    def test_a_target_that_nothing_uses_is_noted(self, check, data, write):
        path = write("def of_output(output):\n    return output.square().sum()\n")
        for loss in ("projection", f"{path}:of_output"):
            report = check(*BASE, "--data", data, "--loss", loss)
            assert f"the target of --data is not used: --loss {loss} takes none" in report["notes"]

    def test_a_target_shape_without_a_target_in_the_data_is_used(self, deconv, tmp_path):
        save_file({"input": torch.randn(20, 4)}, tmp_path / "data.safetensors")
        words = ["check-grad", *BASE, "--data", tmp_path / "data.safetensors", "--loss", "cross-entropy"]
        deconv(*words, "--target-shape", "16:int64:0..3", "-q")

    def test_time_in_front(self, check, tmp_path):
        words = [*LSTM, "--input-shape", "6,2,3"]
        (sentence,) = check(*words)["not_checked"]
        assert "batch_first=False" in sentence
        report = check(*words, "--batch-axis", "0", expect=ExitCode.FAULT_FOUND)
        assert [finding["verdict"] for finding in report["general"]] == ["BATCH-LEAK"]
        for axis in ("1", "none"):
            assert check(*words, "--batch-axis", axis)["not_checked"] == []
        save_file({"input": torch.randn(30, 2, 3)}, tmp_path / "data.safetensors")  # time is not cut as the batch is
        report = check(*LSTM, "--data", tmp_path / "data.safetensors", "--batch-axis", "1")
        assert report["data"]["inputs"] == ["[30, 2, 3] float32"]

    @pytest.mark.parametrize("is_last", [True, False])
    def test_the_shape_of_the_target_decides_where_the_classes_are(self, check, write, tmp_path, is_last):
        inputs, target = torch.randn(3, 5, 4), torch.randint(0, 7, (3, 5))
        save_file({"input": inputs, "target": target}, tmp_path / "data.safetensors")
        path = write(net(f"return self.layer(x){'' if is_last else '.transpose(1, 2)'}"))
        words = ["--model", f"{path}:Net", "--data", tmp_path / "data.safetensors", "--loss", "cross-entropy"]
        report = check(*words)
        assert any("(batch, steps, classes)" in note for note in report["notes"]) == is_last
        torch.manual_seed(0)
        layer = nn.Linear(4, 7)
        loss = nn.functional.cross_entropy(layer(inputs).reshape(15, 7), target.reshape(15))
        assert report["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)

    @pytest.mark.parametrize(
        ("tensors", "says"),
        [
            ({"input": torch.zeros(5, 4), "target": torch.zeros(4, 3)}, ["same number of samples", "'target' 4"]),
            ({"input": torch.zeros(0, 4)}, "holds none"),
        ],
    )
    def test_samples_that_do_not_fit(self, refuses, tmp_path, tensors, says):
        save_file(tensors, tmp_path / "data.safetensors")
        words = ["check-grad", *BASE, "--data", tmp_path / "data.safetensors", "--loss", "mse"]
        refuses(*words, code=ExitCode.INPUT_REFUSED, says=says)


class TestUserCode:
    def test_what_it_prints_stays_out_of_the_answer(self, deconv, write, capfd):
        done = deconv("check-grad", "--model", code("unusual", "Hamiltonian"), "--input-shape", "5,4", "--json")
        assert done.report["counts"] == {"OK": 3}
        assert "called" in done.stderr
        path = write("print('imported')\nmodel = nn.Linear(4, 3)\n")
        assert "imported" in deconv("check-grad", "--model", f"{path}:model", "--input-shape", "5,4", "--json").stderr
        with running_user_code(is_silent=True):
            os.write(1, b"raw")
        os.write(1, b"after")
        assert capfd.readouterr() == ("after", "raw")

    def test_its_warnings_become_notes(self, deconv, write):
        path = write(net("warnings.warn('the moon is full'); return self.layer(x)"))
        done = deconv("check-grad", "--model", f"{path}:Net", "--input-shape", "3,4")
        assert done.stderr.count("the moon is full") == 1
        assert "note: warning from the code: the moon is full" in done.stderr

    def test_a_loss_of_the_model_itself(self, deconv):
        words = ["check-grad", "--model", code("unusual", "OwnLoss"), "--input-shape", "5,4"]
        assert "(the model's own)" in deconv(*words).stdout

    def test_a_hostile_name_does_not_reach_the_terminal(self, deconv, write):
        path = write(
            "model = nn.Linear(4, 2)\n"
            "model.register_parameter('evil\\x1b[31m', nn.Parameter(model.weight.detach().clone()))\n"
        )
        done = deconv("check-grad", "--model", f"{path}:model", "--input-shape", "5,4", expect=ExitCode.FAULT_FOUND)
        assert "\x1b" not in done.stdout


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["missing.pt"], "'missing.pt' does not exist"),
            ([*BASE, "--init", "{"], "--init must be JSON"),
            ([*NETWORK, "--loss", "crossentropy"], ["file.py:function", "perhaps you mean cross-entropy"]),
            (["--run", "WEIGHTS"], "a Python script, but 'WEIGHTS' is no text"),
            ([*NETWORK, "--loss", code("lenet", "cured_loss")], "takes a target"),
            ([*BASE, "--input-shape", "5,x"], "--input-shape"),
            ([*BASE, "--input-shape", "5,9"], "cannot be run on these inputs"),
            ([*BASE, "--input-shape", "5,4:int64:3..3"], "is empty"),
            ([*NETWORK, "--batch-axis", "first"], "--batch-axis"),
            ([*BASE, "--data", "missing.safetensors"], "does not exist"),
            (["--model", "torch.nn:Linear", "--init", "[4, 3]"], "--input-shape 8,1,28,28"),
            (["WEIGHTS"], "--model"),
            (["WEIGHTS", "--init", "{}"], "--init gives the arguments of --model"),
            ([*NETWORK, "--batch-size", "3"], "--batch-size"),
            ([*NETWORK, "--target-shape", "5,3"], "--loss projection takes none"),
            ([*BASE, "--data", "DATA", "--input-shape", "5,4"], ["--input-shape", "--data"]),
            ([*BASE, "--data", "DATA", "--loss", "cross-entropy", "--target-shape", "20:int64:0..3"], "holds one"),
            ([*BASE, "--data", "DATA", "--batch-axis", "1", "--batch-size", "3"], "--batch-size"),
            (["--run", "no_such.py"], "no file 'no_such.py'"),
            ([], ["no model", "--model file.py:Class", "--run train.py"]),
            ([BY_HAND], [f"--run {BY_HAND}", "not a model file"]),
            (["--run", BY_HAND, "--loss", "mse"], "--loss does not go with --run"),
            (["--step", "2", *NETWORK], "there is no --run"),
            ([*NETWORK, "--", "a.pt", "b.pt"], "'b.pt' was given too"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_one_sentence(self, refuses, tmp_path, data, words, says):
        save_file({"weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
        files = {"WEIGHTS": str(tmp_path / "weights.safetensors"), "DATA": str(data)}
        words = [files.get(str(word), str(word)) for word in words]
        says = [part.replace("WEIGHTS", files["WEIGHTS"]) for part in ([says] if isinstance(says, str) else says)]
        refuses("check-grad", *words, code=ExitCode.USAGE, says=says)

    def test_arguments_for_a_whole_model(self, refuses, tmp_path):
        torch.save(nn.Linear(4, 3), tmp_path / "whole.pt")
        words = ["check-grad", tmp_path / "whole.pt", "--model", "torch.nn:Linear", "--init", "[4, 3]"]
        refuses(*words, code=ExitCode.USAGE, says="--init gives arguments to --model")


def test_a_script_gets_its_arguments(deconv, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(f"import sys\nprint(sys.argv[1:])\n{BY_HAND.read_text()}")
    done = deconv("check-grad", "--run", path, "--step", "2", "--json", "--", "--epochs", "3")
    assert "['--epochs', '3']" in done.stderr
    assert done.report["model"]["kind"] == "script"
    assert done.report["summary"].startswith("Training can work")
    assert "note: the script was ended after 4 backward passes, as soon as" in done.stderr
    assert "choose a later pass with --step N" in done.stderr
    assert {p["name"]: p["verdict"] for p in done.report["parameters"]} == {"w": "OK", "b": "OK"}
