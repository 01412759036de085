"""Model files of every kind: read without running what they carry, or refused in one sentence."""

from __future__ import annotations

import pickle
import sys
import types
import zipfile

import pytest
import torch
from hostile_pickles import not_dense, with_members
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from deconv_cli.errors import MalformedInputError, TooLargeError, UnsafeInputError, UsageError
from deconv_cli.io import limits
from deconv_cli.models.model_files import _own_modules, load_named, read_model

OWN_CLASS = (
    "class Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.body = nn.Linear(2, 3)\n"
)


class CallsLinear:
    """A pickle that builds a layer of n × n weights while it is read."""

    def __init__(self, n):
        self.n = n

    def __reduce__(self):
        return nn.Linear, (self.n, self.n)


class TestStateDicts:
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".weird"])
    def test_the_content_decides_and_not_the_suffix(self, tmp_path, network, digest, suffix):
        path = tmp_path / f"weights{suffix}"
        state = network.state_dict()
        torch.save(state, path) if suffix != ".safetensors" else save_file(state, path)
        found = read_model(path)
        assert found.kind == ("safetensors" if suffix == ".safetensors" else "PyTorch")
        assert (found.module, found.notes) == (None, ())
        assert found.sha256 == digest(path)
        assert found.state.keys() == state.keys()
        assert all(torch.equal(found.state[name], state[name]) for name in state)

    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "net"])
    def test_inside_a_checkpoint(self, save, network, key):
        found = read_model(save({"epoch": 3, key: network.state_dict()}))
        assert found.state.keys() == network.state_dict().keys()
        assert found.notes == (f"the weights were taken from the entry '{key}' of a checkpoint",)

    @pytest.mark.parametrize(
        ("found", "says"),
        [([1, 2], "holds a list"), ({"epoch": 3}, "with the entries 'epoch'"), ({}, "holds a dict"), (3, "an int")],
    )
    def test_no_state_dict(self, save, refused, found, says):
        refused(MalformedInputError, read_model, save(found), says=says.replace("an int", "holds a int"))

    @pytest.mark.filterwarnings("ignore")
    def test_tensors_that_are_not_dense(self, save, refused):
        for kind, tensor in not_dense().items():
            refused(MalformedInputError, read_model, save({"w": tensor}), says=["'w' of", kind])


class TestWholeModules:
    @pytest.mark.parametrize(
        "build",
        [
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(32, 3)),
            lambda: nn.LSTM(3, 4, batch_first=True),
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1),
            lambda: nn.ModuleDict({"a": nn.PReLU(), "b": nn.MultiheadAttention(4, 2)}),
        ],
        ids=["convolutions", "lstm", "transformer", "containers"],
    )
    def test_classes_of_torch_need_no_permission(self, save, build):
        model = build()
        found = read_model(save(model))
        assert type(found.module) is type(model)
        assert found.state is None
        for name, tensor in model.state_dict().items():
            assert torch.equal(found.module.state_dict()[name], tensor)

    @pytest.fixture
    def own(self, code, save, monkeypatch):
        """A model of the user's own class, saved by a script, so that the pickle names `__main__.Own`."""
        path = code(OWN_CLASS)
        script = types.ModuleType("script")
        exec(path.read_text(), vars(script))
        monkeypatch.setattr(script.Own, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], "Own", script.Own, raising=False)
        return save(script.Own()), path

    def test_the_class_that_the_user_named(self, own, refused):
        path, source = own
        refused(
            UnsafeInputError,
            read_model,
            path,
            says=["__main__.Own", 'name the model\'s class with model="file.py:Class"'],
        )
        named = load_named(f"{source}:Own", "model")
        assert isinstance(read_model(path, named=named).module, named.value)

    def test_another_class_of_the_code_that_the_user_named(self, own, save, hostile, refused):
        path, source = own
        source.write_text(f"{source.read_text()}from os import mkdir\nfrom torch.nn import Linear as Foreign\n")
        named = load_named(f"{source}:nn.Linear", "model")
        refused(UsageError, read_model, path, named=named, says="class Own, but model names Linear")
        refused(UnsafeInputError, read_model, save(hostile), named=named, says="mkdir")
        assert set(_own_modules(named)) == {"Own", "Linear"}
        assert set(_own_modules(load_named(f"{source}:Own", "model"))) == {"Own"}


def holding_itself():
    model = nn.Sequential(nn.Linear(3, 2))
    model._modules["1"] = model
    return model


def doubling():
    """A module that holds the next one twice, sixty times over: 2⁶⁰ ways to its layer."""
    model = nn.Linear(3, 2)
    for _ in range(60):
        model = nn.Sequential(model, model)
    return model


def with_member_of(group, name, value):
    model = nn.Linear(3, 2)
    vars(model)[group][name] = value
    return model


MALFORMED = {
    "holding itself": (holding_itself, "contains itself"),
    "doubling": (doubling, "contains itself, or more than 100000 others"),
    "empty": (lambda: nn.Linear.__new__(nn.Linear), "a model as torch saves it"),
    "no dictionary": (lambda: with_members(_modules=None), "a model as torch saves it"),
    "a word for a parameter": (
        lambda: with_member_of("_parameters", "weight", "abc"),
        "'weight' should be a Parameter",
    ),
    "a number for a buffer": (lambda: with_member_of("_buffers", "x", 3), "'x' should be a Tensor, but is a int"),
    "a number for a name": (lambda: with_member_of("_modules", 5, nn.ReLU()), "a model as torch saves it"),
    "a word for a hook": (lambda: with_member_of("_state_dict_hooks", 0, "abc"), "a model as torch saves it"),
    "a method replaced": (lambda: with_members(parameters=functional.relu), "method 'parameters' is replaced"),
    "a forward replaced": (lambda: with_members(forward=functional.relu), "method 'forward' is replaced"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_module_that_torch_did_not_put_together(save, refused, name):
    build, says = MALFORMED[name]
    refused(MalformedInputError, read_model, save(build()), says=says)


class TestUnsafePickles:
    def test_code_is_named_and_not_run(self, save, hostile, refused):
        for path in (
            save({"weight": torch.zeros(2), "extra": hostile}),
            save(hostile, "model.safetensors"),
            save({"x": hostile}, "old.pt", _use_new_zipfile_serialization=False),
        ):
            sentence = refused(UnsafeInputError, read_model, path, says="mkdir")
            assert "weights_only=False" not in sentence

    def test_beside_a_class_that_is_allowed(self, save, hostile, refused):
        model = nn.Linear(2, 2)
        model.extra = hostile
        refused(UnsafeInputError, read_model, save(model), says="mkdir")

    def test_a_raw_pickle(self, tmp_path, hostile, refused):
        (tmp_path / "raw.pt").write_bytes(pickle.dumps(hostile, protocol=2))
        refused(UnsafeInputError, read_model, tmp_path / "raw.pt", says="mkdir")
        (tmp_path / "raw.pt").write_bytes(pickle.dumps({"weight": [1.0]}, protocol=2))
        refused(MalformedInputError, read_model, tmp_path / "raw.pt", says="magic number")

    @pytest.mark.parametrize("protocol", [4, 5])
    @pytest.mark.parametrize("is_archive", [True, False])
    def test_later_protocols(self, save, refused, protocol, is_archive):
        options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_archive}
        path = save(nn.Linear(4, 3).state_dict(), **options)
        sentence = refused(UnsafeInputError, read_model, path, says="save it again with torch.save")
        assert "damaged" not in sentence

    def test_a_layer_of_terabytes_that_the_pickle_builds(self, save, refused):
        refused(TooLargeError, read_model, save(CallsLinear(10**6)), says="would allocate 3.638 TiB")

    def test_many_layers_that_the_pickle_builds(self, save, refused, monkeypatch):
        monkeypatch.setattr(limits, "memory_budget", lambda: 10**6)
        refused(TooLargeError, read_model, save([CallsLinear(200) for _ in range(10)]), says="would allocate")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("p/code/model.py", "a TorchScript file"),
        ("p/archive_format", "an exported program"),
        ("p/.data/extern_modules", "torch.package"),
    ],
)
def test_a_program_is_not_opened(tmp_path, refused, entry, says):
    """These are the entries that torch writes; tests/io refuses a real TorchScript file."""
    with zipfile.ZipFile(tmp_path / "p.pt", "w") as archive:
        archive.writestr(entry, "text")
        archive.writestr("p/data.pkl", "text")
    refused(UnsafeInputError, read_model, tmp_path / "p.pt", says=[says, "save its state_dict()"])


class TestDamage:
    @pytest.mark.parametrize("n_bytes", [3, 100, 2000])
    def test_a_file_cut_short(self, save, network, refused, n_bytes):
        path = save(network)
        path.write_bytes(path.read_bytes()[:n_bytes])
        refused(MalformedInputError, read_model, path, says="model.pt")

    def test_no_model_at_all(self, tmp_path, refused):
        (tmp_path / "x.pt").write_bytes(b"not a model at all, but long enough")
        refused(MalformedInputError, read_model, tmp_path / "x.pt", says="not a supported model file")
        with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
            archive.writestr("a.txt", "text")
        refused(
            MalformedInputError,
            read_model,
            tmp_path / "z.pt",
            says="is a zip archive, but not a file of torch.save, which has an entry data.pkl; this one has a.txt;",
        )
        refused(UsageError, read_model, tmp_path / "none.pt", says="does not exist")
