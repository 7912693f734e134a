"""The default corpus: the text that ships with Python itself, which every machine that runs this has.

Three sources: `python_code` (library modules), `python_docstrings` (what their docstrings say, as prose) and
`python_topics` (the language reference of `help()`). Nothing is imported or run: sources are parsed with `ast`.
"""

import ast
import inspect
import io
import os
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator

from pretrain.core.errors import UserError
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile

CODE = "python_code"
DOCSTRINGS = "python_docstrings"
TOPICS = "python_topics"
FORMAT = "python"
TOPICS_FILE = os.path.join("pydoc_data", "topics.py")
# Installed packages are not Python's own; tests and 2to3's fixtures hold broken and generated code on purpose.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3"}
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def find_modules(library: str | None = None) -> list[InputFile]:
    """The library's .py files, sorted; `path` is relative to `library`, which defaults to this interpreter's.

    Raises:
        UserError: the interpreter comes without its sources.
    """
    library = library or library_folder()
    files = []
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        paths = [os.path.join(folder, name) for name in names if name.endswith(".py")]
        for path in paths:
            relative = os.path.relpath(path, library).replace(os.sep, "/")
            files.append(InputFile(relative, os.path.getsize(path), CODE, FORMAT))
    if not files:
        raise UserError(f"this Python has no library sources in {library}; give a corpus of your own with --input")
    return sorted(files)


def library_folder() -> str:
    """Where this interpreter keeps its library; the same for a virtual environment as for its base."""
    return sysconfig.get_paths()["stdlib"]


def read_module(file: InputFile, library: str | None = None) -> Iterator[Record | Unreadable]:
    """One library file as records: its code and its docstrings (one group), or the topics it holds."""
    path = os.path.join(library or library_folder(), file.path)
    origin = f"python{sys.version_info.major}.{sys.version_info.minor}/{file.path}"
    is_topics = file.path == TOPICS_FILE.replace(os.sep, "/")
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        yield Unreadable(origin, f"cannot open: {error.strerror}", source=CODE)
        return
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError) as error:
        yield Unreadable(origin, f"undecodable: {error}", content[:1024], len(content), TOPICS if is_topics else CODE)
        return
    if is_topics:
        yield from _read_topics(origin, text)
        return
    yield Record(text, origin, source=CODE, group=origin)
    yield from _read_docstrings(origin, module_name(file.path), text)


def module_name(path: str) -> str:
    """ "asyncio/base_events.py" → "asyncio.base_events"; a package's `__init__.py` has the package's name."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def docstrings(tree: ast.Module, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, clean docstring) of a module and of its classes and functions, in the order of the source."""
    pending: list[tuple[str, ast.Module | Definition]] = [(name, tree)]
    while pending:
        qualified, node = pending.pop()
        text = ast.get_docstring(node, clean=False)
        if text and text.strip():
            yield qualified, inspect.cleandoc(text).strip()
        inner = [(f"{qualified}.{child.name}", child) for child in node.body if isinstance(child, Definition)]
        pending.extend(reversed(inner))


def _read_docstrings(origin: str, name: str, text: str) -> Iterator[Record | Unreadable]:
    try:
        tree = _parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        yield Unreadable(origin, f"cannot parse: {error}", text[:1024].encode(), source=DOCSTRINGS)
        return
    parts = [f"{qualified}\n\n{docstring}\n" for qualified, docstring in docstrings(tree, name)]
    if not parts:
        return
    try:
        prose = "\n".join(parts)
        prose.encode("utf-8")
    except UnicodeEncodeError:
        yield Unreadable(origin, "an unpaired surrogate", source=DOCSTRINGS)
        return
    yield Record(prose, origin, source=DOCSTRINGS, group=origin)


def _read_topics(origin: str, text: str) -> Iterator[Record | Unreadable]:
    """The entries of the dictionary literal `topics`, each a document and a group of its own."""
    try:
        values = [node.value for node in _parse(text).body if isinstance(node, ast.Assign)]
        topics = ast.literal_eval(values[0])
        entries = [(str(name), str(topic)) for name, topic in topics.items()]
    except (SyntaxError, ValueError, IndexError, AttributeError, RecursionError) as error:
        yield Unreadable(origin, f"no dictionary of topics: {error}", text[:1024].encode(), len(text), TOPICS)
        return
    for name, topic in entries:
        yield Record(topic, f"{origin}:{name}", source=TOPICS)


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old modules have invalid escapes
        return ast.parse(text)
