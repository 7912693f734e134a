"""The default corpus: what is taken from a Python library and what is not, on a made-up one and on the real one."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import gin
import pytest
from corpora import output_table

from pretrain.core.errors import UserError
from pretrain.curate import python_library
from pretrain.curate.documents import Unreadable
from pretrain.curate.python_library import find_modules, module_name, read_module
from pretrain.curate.recipe import Recipe, curate

ROOT = pathlib.Path(__file__).parents[2]

MODULE = '''"""Module docstring.

    Indented more.
"""

def outer(x):
    """Does outer."""
    def inner():
        "Does inner."

class Thing:
    """A thing.
    Second line."""

    async def method(self):
        r"""Awaits \\d."""

    class Nested: "Nested one."

if True:
    def hidden(): "Not at the top of the module."
'''


@pytest.fixture
def library(tmp_path) -> pathlib.Path:
    files = {
        "mod.py": MODULE.encode(),
        "package/__init__.py": b"",
        "package/latin.py": b"# -*- coding: latin-1 -*-\n'''caf\xe9'''\n",
        "package/broken.py": b"# \xff\xfe\n",
        "package/old.py": b"print 'python 2'\n",
        "package/data.txt": b"no module",
        "test/test_mod.py": b"skipped",
        "package/tests/test_a.py": b"skipped",
        "site-packages/other.py": b"skipped",
        "dist-packages/other.py": b"skipped",
        "lib2to3/tests/data/bad.py": b"skipped",
        "idlelib/idle_test/test_x.py": b"skipped",
        "__pycache__/mod.py": b"skipped",
        "pydoc_data/topics.py": b"# comment\ntopics = {'if': 'The if\\n' 'statement', 'for': '''The for'''}\n",
    }
    for name, content in files.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "lib"


def read_library(library: pathlib.Path) -> list:
    return [item for file in find_modules(str(library)) for item in read_module(file, str(library))]


def test_which_files_are_taken(library):
    assert [file.path for file in find_modules(str(library))] == [
        "mod.py",
        "package/__init__.py",
        "package/broken.py",
        "package/latin.py",
        "package/old.py",
        "pydoc_data/topics.py",
    ]


def test_code_and_docstrings_of_a_module_share_a_group(library):
    code, prose = (item for item in read_library(library) if "/mod.py" in item.origin)
    assert (code.source, prose.source) == ("python_code", "python_docstrings")
    assert code.text == MODULE
    assert code.group == prose.group is not None
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert code.origin == prose.origin == f"{version}/mod.py"


def test_docstrings_read_as_prose(library):
    prose = next(item for item in read_library(library) if item.source == "python_docstrings")
    assert prose.text == (
        "mod\n\nModule docstring.\n\nIndented more.\n\n"
        "mod.outer\n\nDoes outer.\n\n"
        "mod.outer.inner\n\nDoes inner.\n\n"
        "mod.Thing\n\nA thing.\nSecond line.\n\n"
        "mod.Thing.method\n\nAwaits \\d.\n\n"
        "mod.Thing.Nested\n\nNested one.\n"
    )


def test_declared_encodings_are_followed_and_bad_bytes_reported(library):
    items = read_library(library)
    latin = [item for item in items if "latin" in item.origin]
    assert "café" in latin[0].text
    assert latin[1].text == "package.latin\n\ncafé\n"
    bad = [item for item in items if isinstance(item, Unreadable)]
    assert [(pathlib.Path(item.origin).name, item.problem.split(":")[0]) for item in bad] == [
        ("broken.py", "undecodable"),
        ("old.py", "cannot parse"),
    ]
    assert [item.source for item in bad] == ["python_code", "python_docstrings"]


def test_topics_are_parsed_and_never_run(library):
    topics = [item for item in read_library(library) if item.source == "python_topics"]
    assert [(item.text, item.origin.rsplit(":")[-1]) for item in topics] == [
        ("The if\nstatement", "if"),
        ("The for", "for"),
    ]
    (library / "pydoc_data" / "topics.py").write_text("topics = open('x')")
    (bad,) = [item for item in read_library(library) if item.source == "python_topics"]
    assert "no dictionary of topics" in bad.problem


def test_module_names():
    paths = {"os.py": "os", "json/__init__.py": "json", "asyncio/base_events.py": "asyncio.base_events"}
    assert {path: module_name(path) for path in paths} == paths


def test_a_python_without_sources_is_explained(tmp_path):
    with pytest.raises(UserError, match="--input"):
        find_modules(str(tmp_path))


def test_a_file_that_went_away_is_unreadable(library):
    file = find_modules(str(library))[0]
    os.remove(library / file.path)
    (item,) = read_module(file, str(library))
    assert "cannot open" in item.problem


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[pathlib.Path, dict, float]:
    """The quickstart recipe, carried out from its gin file as users do."""
    output = tmp_path_factory.mktemp("quickstart") / "clean"
    config = ROOT / "data_recipes" / "quickstart.gin"
    gin.clear_config()
    try:
        gin.parse_config_file(str(config))
        recipe = Recipe()
    finally:
        gin.clear_config()
    started = time.monotonic()
    sheet = curate(recipe, output, workers=2, config_text=config.read_text())
    return output, sheet, time.monotonic() - started


def test_the_quickstart_corpus(quickstart):
    _, sheet, seconds = quickstart
    assert seconds < 30  # takes about 3 on two cores
    assert list(sheet["sources"]) == ["python_code", "python_docstrings", "python_topics"]
    kept = {source: numbers["kept"]["bytes"] for source, numbers in sheet["sources"].items()}
    assert kept["python_code"] > 6_000_000
    assert kept["python_docstrings"] > 1_000_000
    assert kept["python_topics"] > 300_000
    assert 0.02 < sheet["total"]["validation"]["bytes"] / sheet["total"]["kept"]["bytes"] < 0.1
    assert all(numbers["validation"]["documents"] >= 1 for numbers in sheet["sources"].values())
    assert sheet["total"]["kept"]["documents"] > 0.95 * sheet["total"]["read"]["documents"]


def test_no_module_is_on_both_sides_of_the_split(quickstart):
    splits: dict[str, set] = {}
    for row in output_table(quickstart[0], "documents"):
        splits.setdefault(row["origin"], set()).add(row["split"])
    assert {len(found) for found in splits.values()} == {1}


def test_the_library_folder_of_a_virtual_environment_is_its_base_pythons():
    assert (pathlib.Path(python_library.library_folder()) / "ast.py").exists()
    system = shutil.which("python3", path="/usr/bin") or sys.executable  # Debian's, where there is one
    code = "import sysconfig; print(sysconfig.get_paths()['stdlib'])"
    folder = subprocess.run([system, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    paths = {file.path for file in find_modules(folder)}
    assert {"ast.py", "json/__init__.py", "asyncio/base_events.py"} <= paths
    assert not [path for path in paths if "-packages" in path or "/test/" in f"/{path}"]
