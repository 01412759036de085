"""`deconv check-grad` at the prompt: verdicts, exit codes, the report, what is accepted and what is not understood."""

from __future__ import annotations

import os
from importlib import metadata

import pytest
import torch
from gradient_cases import FIXTURES, blamed_line
from safetensors.torch import save_file

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.user_code import running_user_code
from deconv_cli.vocabulary import package_version


def code(fixture: str, name: str) -> str:
    return f"{FIXTURES / fixture}.py:{name}"


NETWORK = ("--model", code("detached", "Base"), "--input-shape", "5,4")


class TestExitCodes:
    def test_healthy(self, deconv):
        done = deconv("check-grad", *NETWORK)
        assert done.stdout.splitlines()[-1] == "healthy: 4 parameters"
        assert deconv("check-grad", *NETWORK, "-q").stdout == "healthy: 4 parameters\n"

    def test_a_package_that_is_run_from_its_source(self, deconv, monkeypatch):
        def missing(package):
            raise metadata.PackageNotFoundError(package)

        monkeypatch.setattr(metadata, "version", missing)
        package_version.cache_clear()
        assert deconv("check-grad", *NETWORK, "--json").report["versions"]["deconv"] == "not installed"
        package_version.cache_clear()

    def test_a_loss_is_named_as_what_it_is(self, deconv):
        words = ["check-grad", "--model", code("unusual", "OwnLoss"), "--input-shape", "5,4"]
        assert "(the model's own)" in deconv(*words).stdout
        assert deconv("check-grad", *NETWORK, "--json").report["loss_name"] == "projection"

    def test_a_fault(self, deconv):
        done = deconv("check-grad", "--model", code("detached", "Detach"), expect=ExitCode.FAULT_FOUND)
        line = f"detached.py:{blamed_line('detached', 'detach')}"
        told = done.stdout.splitlines()
        assert "DETACHED: body.weight, body.bias" in told
        assert [row for row in told if row.startswith("  at ") and line in row and "return h.detach()" in row]
        assert "  instead  return h" in told
        assert told[-1] == "faults: 2 of 4 parameters"

    def test_no_verdict(self, deconv):
        done = deconv("check-grad", *NETWORK, "--budget", "0", "--json", expect=ExitCode.UNTRUSTWORTHY)
        assert done.report["counts"] == {"NOT CHECKED": 4}
        assert len([s for s in done.report["not_checked"] if "budget" in s]) == 4

    def test_noise(self, deconv):
        words = ["check-grad", "--model", code("dying", "Unseeded"), "--json"]
        done = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
        assert done.report["counts"] == {"NOISY": 2}
        assert [finding["verdict"] for finding in done.report["general"]] == ["NOISY"]

    def test_a_fault_of_the_model_as_a_whole(self, deconv):
        done = deconv("check-grad", "--model", code("mixing", "Leak"), "--json", expect=ExitCode.FAULT_FOUND)
        (finding,) = done.report["general"]
        assert finding["verdict"] == "BATCH-LEAK"
        assert finding["causes"][0]["line"] == blamed_line("mixing", "leak")
        assert "as it stands: samples leak into one another (BATCH-LEAK)." in done.report["summary"]

    def test_gradients_by_the_inputs(self, deconv):
        told = deconv("check-grad", *NETWORK, "--wrt", "inputs").stdout.splitlines()
        assert told[0] == "Gradients are right: every input gets one, and it agrees with finite differences."
        assert told[-1] == "healthy: 1 input"
        words = ["check-grad", "--model", code("detached", "Detach"), "--input-shape", "5,4", "--wrt", "inputs"]
        told = deconv(*words, expect=ExitCode.FAULT_FOUND).stdout.splitlines()
        assert told[0] == "No input gets a gradient."

    def test_a_table_without_rows_is_left_out(self, deconv, tmp_path):
        path = tmp_path / "wide.py"
        path.write_text("from torch import nn\nmodel = nn.Sequential(*(nn.Linear(3, 3) for _ in range(21)))\n")
        told = deconv("check-grad", "--model", f"{path}:model", "--input-shape", "5,3").stdout
        assert "and 42 more that are OK" in told
        assert "finite differences\n" not in told


class TestExpectations:
    WORDS = ("check-grad", "--model", code("detached", "Unused"), "--input-shape", "5,4")

    def test_a_known_finding_is_accepted(self, deconv):
        deconv(*self.WORDS, "-q", expect=ExitCode.FAULT_FOUND)
        deconv(*self.WORDS, "--expect", "UNUSED:spare.weight", "-q", expect=ExitCode.FAULT_FOUND)
        done = deconv(*self.WORDS, "--expect", "UNUSED:spare.weight", "--expect", "UNUSED:spare.bias", "--json")
        assert {p["name"]: p["expected"] for p in done.report["parameters"]} == {
            "body.weight": False,
            "body.bias": False,
            "head.weight": False,
            "head.bias": False,
            "spare.weight": True,
            "spare.bias": True,
        }

    def test_a_pattern(self, deconv):
        assert "healthy: 6 parameters (2 expected)" in deconv(*self.WORDS, "--expect", "unused:spare.*").stdout

    def test_another_verdict_is_not_accepted(self, deconv):
        done = deconv(*self.WORDS, "--expect", "DETACHED:spare.*", expect=ExitCode.FAULT_FOUND)
        assert "not found, though expected: DETACHED:spare.*" in done.stderr

    def test_a_line(self, deconv):
        words = ["check-grad", "--model", code("detached", "Detach"), "-q", "--expect"]
        line = blamed_line("detached", "detach")
        for path in ("detached.py", "fixtures/./detached.py", FIXTURES / "detached.py"):
            deconv(*words, f"DETACHED:{path}:{line}")
        deconv(*words, "DETACHED:detached.py:1", expect=ExitCode.FAULT_FOUND)
        deconv(*words, f"DETACHED:ached.py:{line}", expect=ExitCode.FAULT_FOUND)

    def test_the_first_line_does_not_hide_what_is_expected(self, deconv):
        done = deconv(*self.WORDS, "--expect", "UNUSED:spare.*", "--json")
        assert done.report["summary"].startswith("Training can work except for the expected findings")

    def test_what_other_programs_print_goes_to_stderr(self, capfd):
        with running_user_code(is_silent=True):
            os.write(1, b"raw")
        os.write(1, b"after")
        assert capfd.readouterr() == ("after", "raw")

    def test_the_model_as_a_whole(self, deconv):
        deconv("check-grad", "--model", code("mixing", "Leak"), "--expect", "BATCH-LEAK:model", "-q")

    @pytest.mark.parametrize("text", ["UNUSED", "UNUSED:", "BROKEN:x", ":x"])
    def test_what_is_no_expectation(self, refuses, text):
        refuses(*self.WORDS, "--expect", text, code=ExitCode.USAGE, says=["VERDICT:NAME", text])


class TestReport:
    def test_every_parameter_has_its_numbers(self, deconv):
        report = deconv("check-grad", *NETWORK, "--json").report
        assert (report["schema"], report["command"], report["exit_code"]) == (1, "check-grad", 0)
        assert report["data"] == {"kind": "synthetic", "inputs": ["[5, 4] float32"], "seed": 0}
        assert any("synthetic" in note for note in report["notes"])
        for parameter in report["parameters"]:
            comparison = parameter["comparison"]
            assert parameter["gradient_norm"] > 0
            assert comparison["error_bar"] < 1e-4 * abs(comparison["numeric"]) + 1e-9
            assert comparison["resolution"] < 1e-3
            assert comparison["autograd"] == pytest.approx(comparison["numeric"], rel=1e-3, abs=1e-8)

    def test_a_cause_has_its_place(self, deconv):
        words = ["check-grad", "--model", code("lenet", "LeNet5"), "--loss", code("lenet", "wrapped_loss")]
        words += ["--target-shape", "4:int64:0..10", "--json"]
        (fault,) = deconv(*words, expect=ExitCode.FAULT_FOUND).report["faults"]
        (cause,) = fault["causes"]
        assert cause["file"] == str(FIXTURES / "lenet.py")
        assert cause["line"] == blamed_line("lenet", "wrapped")
        assert cause["function"] == "wrapped_loss"
        assert cause["source"].startswith("loss = Variable(loss")
        assert cause["instead"] == "return loss"

    def test_gates_and_time(self, deconv):
        words = ["check-grad", "--model", "torch.nn:LSTM", "--init", "[3, 4]", "--input-shape", "6,2,3", "--json"]
        report = deconv(*words, "--batch-axis", "1").report
        gates = report["parameters"][0]["gates"]
        assert list(gates) == ["input", "forget", "cell", "output"]
        (series,) = report["recurrent"]
        assert series["trend"] == "steady"
        assert len(series["norms"]) == 6

    def test_many_parameters_are_counted(self, deconv):
        words = ["check-grad", "--model", code("healthy", "Transformer")]
        brief, full = deconv(*words), deconv(*words, "--verbose")
        assert "head.weight" in brief.stdout
        assert len(full.stdout.splitlines()) >= len(brief.stdout.splitlines())

    def test_second_derivatives(self, deconv):
        report = deconv("check-grad", *NETWORK, "--second-order", "--json").report
        second = {p["name"]: p["second_order"] for p in report["parameters"]}
        assert second["body.weight"]["autograd"] == pytest.approx(second["body.weight"]["numeric"], rel=1e-3)

    def test_the_same_seed_gives_the_same_report(self, deconv):
        first, second = (deconv("check-grad", *NETWORK, "--seed", "3", "--json").report for _ in range(2))
        assert first["loss"] == second["loss"]
        assert deconv("check-grad", *NETWORK, "--json").report["loss"] != first["loss"]

    def test_a_hostile_name_does_not_reach_the_terminal(self, deconv, tmp_path):
        (tmp_path / "net.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Linear):\n"
            "    def __init__(self):\n"
            "        super().__init__(4, 2)\n"
            "        self.register_parameter('evil\\x1b[31m', nn.Parameter(self.weight.detach().clone()))\n"
        )
        done = deconv("check-grad", "--model", f"{tmp_path}/net.py:Net", expect=ExitCode.FAULT_FOUND)
        assert "\x1b" not in done.stdout


class TestInputs:
    def test_data_of_a_file(self, deconv, tmp_path):
        tensors = {"input": torch.randn(40, 1, 32, 32), "target": torch.randint(0, 10, (40,))}
        save_file(tensors, tmp_path / "data.safetensors")
        words = ["check-grad", "--model", code("lenet", "LeNet5"), "--data", tmp_path / "data.safetensors"]
        report = deconv(*words, "--loss", "cross-entropy", "--batch-size", "3", "--json").report
        assert report["data"]["kind"] == "given"
        assert report["data"]["inputs"] == ["[3, 1, 32, 32] float32"]
        assert not any("synthetic" in note for note in report["notes"])

    def test_arguments_by_name(self, deconv, tmp_path):
        (tmp_path / "net.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.layer = nn.Linear(3, 2)\n"
            "    def forward(self, zebra, ape):\n"
            "        return self.layer(zebra) * ape\n"
        )
        torch.save({"ape": torch.randn(5, 2), "zebra": torch.randn(5, 3)}, tmp_path / "data.pt")
        deconv("check-grad", "--model", f"{tmp_path}/net.py:Net", "--data", tmp_path / "data.pt", "-q")

    @pytest.mark.parametrize(
        ("name", "words", "inputs"),
        [
            ("healthy:Gru", [], ["[4, 12] int64"]),
            ("healthy:Lstm", [], ["[4, 12, 5] float32"]),
            ("healthy:Gru", ["--input-shape", "2,7:int64:3..5"], ["[2, 7] int64"]),
            ("lenet:LeNet5", [], ["[4, 1, 32, 32] float32"]),
        ],
    )
    def test_shapes_are_read_off_the_first_layer_or_given(self, deconv, name, words, inputs):
        report = deconv("check-grad", "--model", code(*name.split(":")), *words, "--json").report
        assert report["data"]["inputs"] == inputs

    @pytest.mark.parametrize("loss", ["cross-entropy", "mse", "l1", "smooth-l1", "huber", "bce-with-logits"])
    def test_named_losses_draw_their_target(self, deconv, loss):
        report = deconv("check-grad", *NETWORK, "--loss", loss, "--json").report
        assert "the target is synthetic" in report["notes"]
        assert report["counts"] == {"OK": 4}

    def test_a_factory_and_its_arguments(self, deconv, tmp_path):
        (tmp_path / "net.py").write_text(
            "from torch import nn\ndef make(width, *, depth=1):\n"
            "    return nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))\n"
        )
        words = ["check-grad", "--model", f"{tmp_path}/net.py:make", "--init", '{"width": 3, "depth": 2}', "--json"]
        assert deconv(*words).report["counts"] == {"OK": 4}

    def test_the_mode(self, deconv):
        words = ["check-grad", "--model", code("dying", "BiasBeforeNorm"), "--input-shape", "4,2,8,8", "--json"]
        assert deconv(*words).report["counts"]["ZERO BY CONSTRUCTION"] == 1
        assert deconv(*words, "--mode", "eval").report["counts"] == {"OK": 6}

    def test_a_model_without_a_graph_in_double(self, deconv, tmp_path):
        (tmp_path / "net.py").write_text(
            "import torch\nfrom torch import nn\n"
            "class Net(nn.Linear):\n"
            "    def __init__(self):\n"
            "        super().__init__(4, 2)\n"
            "    def forward(self, x):\n"
            "        if x.dtype != torch.float32:\n"
            "            raise RuntimeError('no kernel for it')\n"
            "        return super().forward(x)\n"
        )
        report = deconv("check-grad", "--model", f"{tmp_path}/net.py:Net", "--json").report
        assert report["finite_difference_dtype"] == "float32"
        assert report["counts"] == {"OK": 2}
        assert any("does not run in float64" in note for note in report["notes"])


class TestUserCode:
    @pytest.fixture
    def nets(self, tmp_path):
        (tmp_path / "nets.py").write_text("from torch import nn\nprint('imported')\nmodel = nn.Linear(4, 3)\n")
        return tmp_path / "nets.py"

    def test_what_it_prints_stays_out_of_the_answer(self, deconv, nets):
        done = deconv("check-grad", "--model", code("unusual", "Hamiltonian"), "--input-shape", "5,4", "--json")
        assert done.report["counts"] == {"OK": 3}
        assert "called" in done.stderr
        assert "imported" in deconv("check-grad", "--model", f"{nets}:model", "--json").stderr

    @pytest.mark.parametrize("words", [[], ["--input-shape", "5,4"]])
    def test_a_network_that_takes_a_gradient_itself(self, deconv, words):
        """Neither its synthetic target nor its guessed input is drawn under no_grad."""
        done = deconv("check-grad", "--model", code("unusual", "Hamiltonian"), *words, "--loss", "mse", "--json")
        assert done.report["counts"] == {"OK": 3}
        assert "the target is synthetic" in done.report["notes"]

    def test_a_model_that_is_there_already(self, deconv, nets, tmp_path):
        words = ["check-grad", "--model", f"{nets}:model", "--input-shape", "5,4"]
        assert deconv(*words, "--json").report["counts"] == {"OK": 2}
        save_file({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, tmp_path / "w.safetensors")
        report = deconv("check-grad", tmp_path / "w.safetensors", *words[1:], "--json").report
        assert [p["weight_norm"] for p in report["parameters"]] == [0, 0]

    def test_a_model_that_is_there_already_takes_no_arguments(self, refuses, tmp_path):
        (tmp_path / "ready.py").write_text("from torch import nn\nready = nn.Linear(4, 3)\n")
        words = ["check-grad", "--model", f"{tmp_path}/ready.py:ready", "--init", "[4, 3]"]
        refuses(*words, code=ExitCode.USAGE, says=["is a model already", "init"])


class TestBatchAxis:
    WORDS = ("check-grad", "--model", "torch.nn:LSTM", "--init", "[3, 4]", "--input-shape", "6,2,3", "--json")

    def test_time_in_front_is_asked_about(self, deconv):
        (sentence,) = deconv(*self.WORDS).report["not_checked"]
        assert "batch_first=False" in sentence

    def test_an_axis_that_is_given_is_taken(self, deconv):
        report = deconv(*self.WORDS, "--batch-axis", "0", expect=ExitCode.FAULT_FOUND).report
        assert [finding["verdict"] for finding in report["general"]] == ["BATCH-LEAK"]
        assert report["not_checked"] == []
        assert deconv(*self.WORDS, "--batch-axis", "1").report["not_checked"] == []
        assert deconv(*self.WORDS, "--batch-axis", "none").report["not_checked"] == []


class TestNotUnderstood:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ([], "--model file.py:Class"),
            (["missing.pt"], "'missing.pt' does not exist"),
            (["--model", "detached.py"], "file.py:Name"),
            (["--model", "nowhere.py:Net"], "does not exist"),
            (["--model", "no_such_package:Net"], "cannot be imported"),
            (["--model", code("detached", "Absent")], "holds no 'Absent'"),
            (["--model", code("detached", "item_loss")], "could not be built"),
            (["--model", code("detached", "Base"), "--init", "{"], "--init must be JSON"),
            (["--model", code("detached", "Base"), "--init", "3"], "object or a list"),
            (["--model", code("detached", "Base"), "--init", '{"depth": 3}'], "depth"),
            ([*NETWORK, "--loss", "hinge"], "cross-entropy"),
            ([*NETWORK, "--loss", code("lenet", "cured_loss")], "takes a target"),
            ([*NETWORK[:3], "5,x"], "--input-shape"),
            ([*NETWORK[:3], "5,4:int64:3..3"], "is empty"),
            ([*NETWORK[:3], "5,9"], "cannot be run on these inputs"),
            ([*NETWORK, "--batch-axis", "first"], "--batch-axis"),
            (["--model", code("detached", "Base"), "--data", "missing.safetensors"], "does not exist"),
            (["--model", "torch.nn:Tanh", "--input-shape", "3"], "no parameters"),
            (["--model", "torch.nn:Bilinear", "--init", "[2, 3, 4]"], "forward takes 2 inputs"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_one_sentence(self, refuses, words, says):
        refuses("check-grad", *words, code=ExitCode.USAGE, says=says)

    def test_weights_without_a_class(self, refuses, tmp_path):
        save_file({"weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
        refuses("check-grad", tmp_path / "weights.safetensors", code=ExitCode.USAGE, says="--model")


class TestScripts:
    SCRIPT = str(FIXTURES / "scripts" / "by_hand.py")

    def test_stdout_carries_the_report_alone(self, deconv):
        done = deconv("check-grad", "--run", self.SCRIPT, "--json")
        assert done.report["model"]["kind"] == "script"
        assert done.report["summary"].startswith("Training can work")
        assert {p["name"]: p["verdict"] for p in done.report["parameters"]} == {"w": "OK", "b": "OK"}

    def test_what_follows_goes_to_the_script(self, deconv, tmp_path):
        path = tmp_path / "train.py"
        path.write_text(f"import sys\nprint(sys.argv[1:])\n{(FIXTURES / 'scripts' / 'by_hand.py').read_text()}")
        done = deconv("check-grad", "--run", path, "--step", "2", "--", "--epochs", "3")
        assert "['--epochs', '3']" in done.stderr
        assert done.stdout.splitlines()[0].startswith("Training can work")

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--run", "no_such.py"], "no file 'no_such.py'"),
            (["--run", SCRIPT, "--loss", "mse"], "--loss is for models that are named"),
            (["--step", "2", *NETWORK], "there is no --run"),
            ([*NETWORK, "--", "a.pt", "b.pt"], "'b.pt' came too"),
        ],
    )
    def test_what_does_not_go_with_a_script(self, refuses, words, says):
        refuses("check-grad", *words, code=ExitCode.USAGE, says=says)
