"""The public library: every promised name is there and explained; registries load their parts on request."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deconv_cli
from deconv_cli import errors, parts
from deconv_cli.errors import UsageError
from deconv_cli.parts import Registry

PROMISED = {
    *("forward", "invert", "pseudo_inverse"),
    *("PseudoInverse", "Reconstruction", "Solution", "Status"),
    *("check_gradients", "GradientReport", "Finding", "Cause", "Verdict", "GRADIENT_RULES", "ReceptiveFieldConv2d"),
}


def test_all_holds_what_the_library_promises():
    names = set(deconv_cli.__all__)
    assert names >= PROMISED
    kinds = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name, value in kinds.items() if issubclass(value, errors.DeconvError)} <= names
    assert "__version__" in names


def test_all_holds_every_public_name_of_the_package():
    importlib.import_module("deconv_cli.io")
    modules = {name for name in vars(deconv_cli) if f"deconv_cli.{name}" in sys.modules}
    from_elsewhere = {"TYPE_CHECKING", "Any", "annotations", "ast", "importlib", "pkgutil"}
    public = {name for name in vars(deconv_cli) if not name.startswith("_")} - modules - from_elsewhere
    assert public <= set(deconv_cli.__all__)


@pytest.mark.parametrize("name", [name for name in deconv_cli.__all__ if name != "__version__"])
def test_every_name_resolves_and_is_explained(name):
    value = getattr(deconv_cli, name)
    if isinstance(value, deconv_cli.Registry):
        assert name in deconv_cli.__all__
        assert value.names
        return
    assert value.__name__ == name
    assert value.__module__.startswith("deconv_cli.")
    assert value.__doc__
    assert value.__doc__.strip()


def test_the_version_is_the_same_wherever_it_is_written():
    root = Path(deconv_cli.__file__).parent.parent
    for name, line in (("CITATION.cff", "version: {}"), ("recipe/recipe.yaml", '  version: "{}"')):
        assert line.format(deconv_cli.__version__) in (root / name).read_text(encoding="utf-8").splitlines(), name


def test_the_package_can_be_imported_from_a_zip(tmp_path):
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", Path(deconv_cli.__file__).parents[1], "deconv_cli")
    code = "import deconv_cli; print(deconv_cli.__file__, deconv_cli.errors.UsageError is deconv_cli.UsageError)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": packed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [str(Path(packed, "deconv_cli", "__init__.py")), "True"]


def test_an_unknown_name_is_an_attribute_error():
    missing = "deblur"
    with pytest.raises(AttributeError, match="'deconv_cli' has no attribute 'deblur'"):
        getattr(deconv_cli, missing)
    assert not hasattr(deconv_cli, "np")
    with pytest.raises(ImportError):
        from deconv_cli import deblur  # noqa: F401


REGISTRIES = {name: value for name, value in vars(parts).items() if isinstance(value, Registry)}


@pytest.mark.parametrize("name", REGISTRIES)
def test_every_built_in_part_is_there_and_public(name):
    registry = REGISTRIES[name]
    assert getattr(deconv_cli, name) is registry
    assert all(registry[part] is registry[part] for part in registry)


def test_names_are_known_without_importing_any_part():
    script = (
        "import sys, deconv_cli; assert list(deconv_cli.BOUNDARIES) and list(deconv_cli.CODECS);"
        "assert not {'torch', 'numpy', 'deconv_cli.operators', 'deconv_cli.io'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_parts_come_and_go():
    registry = Registry("fruit", {"apple": "math:pi"})
    assert registry.register("pear", 3) == 3
    assert registry.names == tuple(registry) == ("apple", "pear")
    assert "pear" in registry
    assert registry["pear"] == 3
    assert round(registry["apple"], 2) == 3.14
    with pytest.raises(UsageError, match="fruit 'pear' is registered already"):
        registry.register("pear", 4)
    with pytest.raises(UsageError, match="fruit must be one of apple, pear, but is 'plum'"):
        registry["plum"]
    with pytest.raises(UsageError, match="cannot be removed"):
        registry.unregister("apple")
    registry.unregister("pear")
    assert "pear" not in registry
    assert registry.check("apple") == "apple"
