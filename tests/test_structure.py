"""The shape of the code, held by a test: imports go one way, files and functions stay short, tests keep up."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pretrain"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Lower layers first; folders of one layer do not import each other.
LAYERS = [
    {"core"},
    {"sharding"},
    {"models", "objectives", "optim", "data", "curate"},
    {"train"},
    {"evaluate", "adapt", "interop", "plan", "report"},
    {"evaluation", "pairs", "transcripts", "training", "supervise"},
    {"own_scores"},
    {"experiment"},
    {"commands", "emergence", "ahead_of_time"},
    {"pod"},
    {"planning", "checkpoints"},
    {"main", "__init__"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = {"tensorflow", "tensorflow_datasets", "seqio", "apache_beam", "t5"}
# and there inside functions only
MAY_IMPORT_HEAVY = {
    "curate/beam_engine.py",
    "curate/registered.py",
    "curate/rlds.py",
    "data/tasks.py",
    "data/engines.py",
}


def part(path: Path) -> str:
    """The layer's name a module belongs to: its folder, or itself at the top."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, ast.stmt]]:
    """Names of imported modules, with the statement."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module
            found += [(f"{base}.{alias.name}" if base == "pretrain" else base, node) for alias in node.names]
    return found


def violations(path: Path, source_part: str, names: list[str]) -> list[str]:
    """Imports of `pretrain` modules in a layer that is not below."""
    wrong = []
    for name in names:
        pieces = name.split(".")
        if pieces[0] != "pretrain" or len(pieces) == 1:
            continue
        target = pieces[1]
        if target != source_part and RANK[target] >= RANK[source_part]:
            wrong.append(f"{path.name}: {source_part} imports {name}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    assert part(path) in RANK, f"{path} is in no layer: add its folder to LAYERS and to docs/architecture.md"
    assert not violations(path, part(path), [name for name, _ in imports(path)])


def test_the_import_check_sees_a_wrong_import():
    assert violations(Path("x.py"), "models", ["pretrain.train.loop"])
    assert violations(Path("x.py"), "models", ["pretrain.objectives.base"])
    assert not violations(Path("x.py"), "train", ["pretrain.objectives.base", "jax"])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_only_inside_functions_of_their_modules(path):
    tree = ast.parse(path.read_text())
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    top = {id(node) for node in ast.walk(tree) if id(node) not in inside}
    allowed = str(path.relative_to(PACKAGE)) in MAY_IMPORT_HEAVY
    for name in [n for n, _ in imports(path)]:
        assert name.split(".")[0] not in HEAVY or allowed, f"{path}: imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) in top:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not HEAVY & {n.split(".")[0] for n in names}, f"{path}: {names} at the top of the module"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short_and_explained(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f"{path} has more than 400 lines"
    tree = ast.parse(text)
    assert not text.strip() or ast.get_docstring(tree), f"{path} does not say what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_nothing_is_called_utils():
    assert not [p for p in MODULES if re.search(r"utils?(\.py)?$", p.name)]


def test_no_pickle_and_no_eval():
    for path in MODULES:
        tree = ast.parse(path.read_text())
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"eval", "exec", "compile"}, path
        assert not {name.split(".")[0] for name, _ in imports(path)} & {"pickle", "dill", "cloudpickle", "shelve"}, path


def test_tests_keep_up_with_the_code():
    def lines(paths):
        return sum(1 for p in paths for line in p.read_text().splitlines() if line.strip())

    assert lines(sorted((ROOT / "tests").rglob("*.py"))) >= 0.6 * lines(MODULES)


def test_test_files_have_names_of_their_own():
    """Without packages in tests/, pytest takes two files of one name for one module."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
