"""Source-code trees: languages, licences, charsets, archives, and the files that nobody wrote."""

import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pytest
from corpora import batch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.curate import source_code
from pretrain.curate.code_rules import CodeRules, is_marked_generated, mean_line
from pretrain.curate.documents import DOCUMENTS, Record, Unreadable
from pretrain.curate.formats import find_inputs, read_file, split_format
from pretrain.curate.languages import BY_EXTENSION, language_of
from pretrain.curate.licences import Licences, declared_licence, is_allowed, licence_of, normalise
from pretrain.curate.readers import Fields
from pretrain.curate.source_code import decode_source

MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software, to deal in it "
    "without restriction. The above copyright notice and this\npermission notice shall be included in all copies."
)
BSD = "Redistribution and use in source and binary forms, with or without\n# modification, are permitted provided that:"
TREE = {
    "LICENSE": MIT.encode(),
    "main.py": b"print('hello')\n",
    "lib/tool": b"#!/usr/bin/env python3\nprint(1)\n",
    "lib/fast.c": b"/* SPDX-License-Identifier: GPL-2.0-only */\nint x;\n",
    "other/COPYING": (BSD + " Neither the name may be used to endorse or promote products.").encode(),
    "other/deep/a.go": b"package a\n",
    "latin.py": b"# -*- coding: latin-1 -*-\n# gr\xfc\xdfe\n",
    "old.c": b"/* J\xfcrgen wrote this a long time ago, and it has been kept since */\nint main() { return 0; }\n",
    "picture.png": b"\x89PNG\0\0",
    "data.c": b"int\0\xff\xfe",
    "empty.py": b"\n",
    ".git/config": b"[core]",
}


def write_tree(root, tree=TREE):
    for path, content in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def write_tar(path, tree=TREE, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in tree.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, tree=TREE):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in tree.items():
            archive.writestr(name, content)
    return path


def read(path, **fields) -> dict[str, Record | Unreadable]:
    """What is made of each file, by its path inside the repository."""
    (file,), _ = find_inputs(f"code:{path}", "corpus")
    items = list(read_file(file, Fields(**fields)))
    found = {item.origin.removeprefix(f"{path}/"): item for item in items}
    assert len(found) == len(items)
    return found


WRITERS = [("repository", write_tree), ("repository.tar.gz", write_tar), ("repository.zip", write_zip)]


@pytest.mark.parametrize("name, write", WRITERS)
def test_a_repository_is_read_file_by_file(tmp_path, name, write):
    path = write(tmp_path / name)
    found = read(path)
    assert set(found) == set(TREE) - {".git/config"}
    records = {path: item for path, item in found.items() if isinstance(item, Record)}
    about = {path: json.loads(item.metadata) for path, item in records.items()}
    languages = {path: values["language"] for path, values in about.items()}
    assert languages == {
        "main.py": "python",
        "lib/tool": "python",
        "lib/fast.c": "c",
        "other/deep/a.go": "go",
        "latin.py": "python",
        "old.c": "c",
    }
    licences = {path: values["licence"] for path, values in about.items()}
    assert {licences.pop("lib/fast.c"), licences.pop("other/deep/a.go")} == {"GPL-2.0-only", "BSD-3-Clause"}
    assert set(licences.values()) == {"MIT"}
    assert "grüße" in records["latin.py"].text
    assert "Jürgen" in records["old.c"].text
    assert {item.group for item in records.values()} == {str(path)}
    rules = {path: item.rule for path, item in found.items() if isinstance(item, Unreadable)}
    unknown = dict.fromkeys(["picture.png", "LICENSE", "other/COPYING"], "unknown_language")
    assert rules == {**unknown, "data.c": "binary", "empty.py": "empty"}


def test_sizes_of_rejected_files_are_theirs(tmp_path):
    found = read(write_tree(tmp_path / "r"), max_record_bytes=20)
    assert found["main.py"].text == "print('hello')\n"
    assert found["lib/fast.c"].rule == "unreadable"
    assert found["lib/fast.c"].size == len(TREE["lib/fast.c"])
    assert found["picture.png"].size == len(TREE["picture.png"])


@pytest.mark.parametrize("name, write", WRITERS[1:])
def test_a_damaged_archive_keeps_what_stands_before(tmp_path, name, write):
    tree = {f"{index:03d}.py": b"x = %d  # " % index + bytes(range(65, 91)) * 40 for index in range(60)}
    path = write(tmp_path / name, tree)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"\xff" * 30 + content[middle + 30 :])
    found = read(path)
    assert any("damaged" in item.problem for item in found.values() if isinstance(item, Unreadable))
    records = {path: item.text for path, item in found.items() if isinstance(item, Record)}
    assert len(records) > 10
    assert all(text.encode() == tree[path] for path, text in records.items())


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300), st.sampled_from(["a.zip", "a.tar", "a.tar.gz", "a.tar.zst", "a.tar.xz"]))
@example(b"PK\x05\x06" + bytes(18), "a.zip")
@example(bytes(1024), "a.tar")
def test_no_archive_whatsoever_raises(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("archive") / name
    path.write_bytes(content)
    for item in read(path).values():
        assert isinstance(item, Unreadable)


def test_an_archive_that_expands_beyond_belief(tmp_path, monkeypatch):
    monkeypatch.setattr(source_code, "EXPANSION_ALLOWANCE", 1 << 20)
    monkeypatch.setattr(source_code, "MAX_EXPANSION", 10)
    path = write_zip(tmp_path / "a.zip", {"a.py": b"x = 1\n", "b.py": b" " * 50_000_000})
    found = read(path)
    assert found["a.py"].text == "x = 1\n"
    assert any("beyond belief" in item.problem for item in found.values() if isinstance(item, Unreadable))


def test_repositories_by_glob(tmp_path):
    for name in ("one", "two"):
        write_tree(tmp_path / name)
    write_zip(tmp_path / "three.zip")
    (tmp_path / "notes.txt").write_text("no repository")
    files, _ = find_inputs(f"code:{tmp_path}/*", "code")
    assert [file.path.rpartition("/")[2] for file in files] == ["one", "three.zip", "two"]
    assert {file.format for file in files} == {"code"}
    assert files[0].size == sum(len(content) for content in TREE.values())
    with pytest.raises(UserError, match="no folders or archives match"):
        find_inputs(f"code:{tmp_path}/nothing*", "code")


def test_formats_by_name():
    assert split_format("code:a/*") == ("code", "a/*")
    assert split_format("jsonl:gs://bucket/part-*") == ("jsonl", "gs://bucket/part-*")
    for plain in ("gs://bucket/x", "a/b.jsonl", "C:x.txt", "nosuch:x"):
        assert split_format(plain) == (None, plain)


@given(st.binary(max_size=300))
@example(b"\xff\xfe\x00\xd8")
@example(b"# coding: no-such-charset\n\xff")
@example(b"# coding: rot13\n\xff")
def test_decoding_loses_no_byte(content):
    text, charset = decode_source(content)
    if text is not None:
        text.encode("utf-8")
        bare = content.removeprefix(b"\xff\xfe") if charset == "utf-16" else content
        if charset not in ("utf-16",):
            assert text.encode(charset) == bare


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")))
def test_utf8_sources_are_read_as_they_are(text):
    assert decode_source(text.encode())[0] == text


def test_languages():
    assert language_of("a/b/Makefile") == "makefile"
    assert language_of("A.PY") == "python"
    assert language_of("run", b"#!/bin/sh -e\n") == "shell"
    assert language_of("run", b"#!/usr/bin/env -S FOO=1 perl5.36 -w\n") == "perl"
    assert language_of("run", b"#!") is None
    assert language_of("a.unknown") is None
    assert len(BY_EXTENSION) > 200


@pytest.mark.parametrize(
    "text, expected",
    [
        ("// SPDX-License-Identifier: Apache-2.0 OR MIT */", "Apache-2.0 OR MIT"),
        (MIT, "MIT"),
        ("/*\n * " + MIT.replace("\n", "\n * ").upper() + " */", "MIT"),
        (BSD, "BSD-2-Clause"),
        (BSD + " Neither the name of X may be used to endorse or promote products", "BSD-3-Clause"),
        ("Licensed under the Apache License, Version 2.0 (the License)", "Apache-2.0"),
        (
            "GNU General Public License as published; either version 2, or (at your option) any later",
            "GPL-2.0-or-later",
        ),
        ("under the terms of the GNU Lesser General Public License version 2.1 only", "LGPL-2.1-only"),
        ("You may use it under the same terms as Perl itself.", "Artistic-1.0-Perl OR GPL-1.0-or-later"),
        ("This work is licensed under Creative Commons Attribution-ShareAlike 4.0", "CC-BY-SA-4.0"),
        ("Copyright 2020 Somebody. All rights reserved.", None),
        ("def permit(): return 'mit'", None),
        ("", None),
    ],
)
def test_licences_by_their_words(text, expected):
    assert licence_of(text) == expected


@given(st.text(max_size=500))
@example("SPDX-License-Identifier: ((((")
def test_no_text_whatsoever_breaks_licences(text):
    found = licence_of(text)
    assert found is None or isinstance(is_allowed(found, {"MIT"}), bool)
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("package.json", '{"license": "MIT"}', "MIT"),
        ("package.json", '{"license": {"type": "ISC"}}', "ISC"),
        ("package.json", "[1", None),
        ("Cargo.toml", '[package]\nlicense = "MIT OR Apache-2.0"\n', "MIT OR Apache-2.0"),
        ("pyproject.toml", '[project]\nlicense = {text = "BSD-3-Clause"}\n', "BSD-3-Clause"),
        ("pyproject.toml", '[project]\nlicense = {file = "LICENSE"}\n', None),
        ("PKG-INFO", "Name: x\nLicense-Expression: MIT\n", "MIT"),
    ],
)
def test_declared_licences(name, text, expected):
    assert declared_licence(name, text) == expected


@pytest.mark.parametrize(
    "expression, expected",
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("MIT AND (GPL-2.0-only OR ISC)", True),
        ("GPL-2.0-only OR MIT AND ISC", True),
        ("(GPL-2.0-only OR MIT) AND AGPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(MIT", True),
        ("", False),
        ("MIT MIT", False),
    ],
)
def test_expressions(expression, expected):
    assert is_allowed(expression, {"MIT", "ISC", "Apache-2.0"}) == expected


def code_batch(files: dict[str, tuple[str, dict]]) -> pa.RecordBatch:
    plain = batch([text for text, _ in files.values()], list(files))
    metadata = pa.array([json.dumps({"path": path, **values}) for path, (_, values) in files.items()])
    return plain.set_column(5, DOCUMENTS.field("metadata"), metadata)


def test_licences_stage():
    documents = code_batch({"a": ("x", {"licence": "MIT"}), "b": ("x", {"licence": "GPL-3.0-only"}), "c": ("x", {})})
    decided = Licences().decide(documents)
    assert dict(zip(decided["id"].to_pylist(), decided["rule"].to_pylist(), strict=True)) == {
        "b": "licence",
        "c": "unknown_licence",
    }
    assert Licences(allowed=["GPL-3.0-only", "MIT"], keep_unknown=True).decide(documents).num_rows == 0


MINIFIED = "function a(b){return b+1};" * 100


@pytest.mark.parametrize(
    "path, text, rule",
    [
        ("a_pb2.py", "x = 1", "generated"),
        ("a.py", "# Generated by the protocol buffer compiler.  DO NOT EDIT!\nx = 1", "generated"),
        ("a.c", "/* A Bison parser, made by GNU Bison 3.8.2.  */\nint x;", "generated"),
        ("a.go", "// Code generated by stringer; DO NOT EDIT.\npackage a", "generated"),
        ("a.js", MINIFIED, "minified"),
        ("a.min.js", "x", "minified"),
        ("a.js", "/*! licence */\n" + MINIFIED, "minified"),
        ("a.py", MINIFIED, None),
        ("node_modules/x/a.js", "x", "vendored"),
        ("pip/_vendor/requests/api.py", "x", "vendored"),
        ("static/jquery-3.6.0.min.js", "x", "vendored"),
        ("vendor_tools.py", "x", None),
        ("a.py", "# Keys can be generated by any tool.\nx = 1", None),
        ("a.py", "text = 'do not edit'\n", None),
        ("a.py", "x = 1\n" * 100 + "# do not edit this\n", None),
    ],
)
def test_files_that_nobody_wrote(path, text, rule):
    found = CodeRules().find(path, text, language_of(path))
    assert (found.rule if found else None) == rule


def test_code_rules_stage_and_switches():
    files = {"a.min.js": (MINIFIED, {}), "vendor/a.py": ("x", {}), "b_pb2.py": ("x", {}), "c.py": ("x = 1", {})}
    decided = CodeRules().decide(code_batch(files))
    assert decided["rule"].to_pylist() == ["minified", "vendored", "generated"]
    assert decided["value"].to_pylist() == [pytest.approx(len(MINIFIED)), None, None]
    assert CodeRules(generated=False, minified=False, vendored=False).decide(code_batch(files)).num_rows == 0
    with pytest.raises(UserError, match="max_mean_line"):
        CodeRules(max_mean_line=0)


@given(st.text(max_size=300), st.text(max_size=40))
def test_no_file_whatsoever_breaks_the_rules(text, path):
    CodeRules().find(path, text, "javascript")
    assert mean_line(text) <= len(text)
    assert not is_marked_generated("") and isinstance(is_marked_generated(text), bool)
