"""A registry knows names without importing, loads parts on request, and lists its names."""

import subprocess
import sys

import pytest

import deconv_cli
from deconv_cli import parts
from deconv_cli.errors import UsageError
from deconv_cli.parts import Registry

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
