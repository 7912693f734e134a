"""The audit's own reading of pins and bills; `make audit` itself needs a tool that is not among the dependencies."""

import importlib.util

import pytest
from tiny import ROOT


@pytest.fixture(scope="module")
def audit():
    specification = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_dependency_is_pinned(audit):
    wanted = audit.wanted((ROOT / "setup.py").read_text())
    pins = audit.read_pins(audit.PINS.read_text())
    assert {"jax", "flax", "orbax-checkpoint", "etils", "xxhash", "backports-zstd"} <= wanted
    assert wanted <= pins.keys()
    assert all(version[0].isdigit() for version in pins.values())


def test_a_version_other_than_the_pinned_one_is_told(audit):
    bill = {"components": [
        {"name": "Foo_Bar", "version": "1.0"}, {"name": "pretrain", "version": "0"}, {"name": "new", "version": "3"},
    ]}  # fmt: skip
    found = audit.versions(bill)
    assert found == {"foo-bar": "1.0", "new": "3"}
    pins = audit.read_pins("# a comment\nfoo-bar==2.0\nelse==1  # unused here\n")
    assert audit.differences(pins, found) == ["foo-bar 1.0, pinned 2.0", "new 3, pinned nowhere"]
    assert not audit.differences({"foo-bar": "1.0", "new": "3"}, found)
