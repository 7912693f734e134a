"""Licences of source code as SPDX expressions: by identifier lines, by the words of a licence, by package metadata.

Each licence is known by a few words that are its own and that no other has. They are looked for in text without
comment signs, punctuation, case and line breaks, so re-wrapped and commented licences read the same. A text that
grants rights in words of its own is unknown, which is None and never "permissive".
"""

import dataclasses
import json
import re
from collections.abc import Sequence

import gin
import pyarrow as pa

from pretrain.core.fields import check_fields
from pretrain.curate.stages import DECISIONS, rejections

HEADER_CHARACTERS = 6_000  # a source file's own licence stands at its top
FILE_CHARACTERS = 120_000
FULL_TEXT, TITLE = 4_000, 250  # characters from which a text is a whole licence, and where it says which
FILE_NAMES = re.compile(r"(?:(?:un|mit-)?licen[cs]e|copying|copyright)(?:[-._].*)?", re.IGNORECASE)
METADATA_NAMES = {"package.json", "Cargo.toml", "pyproject.toml", "setup.cfg", "composer.json", "PKG-INFO", "METADATA"}
IDENTIFIER = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9][\w.+() -]*)")
DECLARED = re.compile(
    r"""^\s*["']?license(?:-expression)?["']?\s*[:=]\s*(?:\{\s*text\s*=\s*)?["']?"""
    r"""([A-Za-z0-9][\w.+() -]{1,80}?)["',}\s]*$""",
    re.IGNORECASE | re.MULTILINE,
)

PUBLIC_DOMAIN = "LicenseRef-public-domain"
MIT_GRANT = "permission is hereby granted free of charge to any person obtaining"
BSD_GRANT = "redistribution and use in source and binary forms with or without modification are permitted"
ISC_GRANT = r"permission to use copy modify and (?:or )?distribute this software for any purpose"
OLD_GRANT = r"permission to use copy modify (?:and )?(?:distribute )?(?:and sell )?this software and its documentation"
# (identifier, words it has, words it has not); words are regular expressions over single-spaced lower-case words.
PHRASES: tuple[tuple[str, str, str], ...] = (
    (
        "MIT",
        rf"{MIT_GRANT}.{{0,900}}permission notice (?:including the next paragraph )?shall be included",
        "^$",
    ),
    ("MIT-0", MIT_GRANT, "permission notice|redistributions of source code must|preserved|notices? "),
    ("NCSA", rf"{MIT_GRANT}.{{0,900}}redistributions of source code must", "^$"),
    ("BSD-4-Clause", rf"{BSD_GRANT}.{{0,2500}}all advertising materials mentioning", "^$"),
    (
        "BSD-3-Clause",
        rf"{BSD_GRANT}.{{0,2500}}(?:endorse or promote|used to promote products)",
        "all advertising materials mentioning",
    ),
    ("BSD-2-Clause", BSD_GRANT, "endorse or promote|used to promote products|all advertising materials mentioning"),
    ("ISC", rf"{ISC_GRANT}.{{0,80}}provided that the above copyright notice", "^$"),
    ("0BSD", rf"{ISC_GRANT} with or without fee is hereby granted", "provided that"),
    ("HPND", OLD_GRANT, "without a written agreement"),
    ("PostgreSQL", rf"{OLD_GRANT}.{{0,80}}without a written agreement", "^$"),
    (
        "Apache-2.0",
        r"apache license,? version 2|apache(?: software)? license v?(?:ersion )?2|apache 2 0 license"
        r"|apache org licenses license 2 0|^version 2 0 january 2004",
        "^$",
    ),
    ("MPL-2.0", r"mozilla public license (?:v|version |v )?2 0|mozilla org mpl 2 0", "^$"),
    ("MPL-1.1", r"mozilla public license (?:v|version |v )?1 1", "^$"),
    ("EPL-2.0", r"eclipse public license (?:v |version |v)?2 0", "^$"),
    ("EPL-1.0", r"eclipse public license (?:v |version |v)?1 0", "^$"),
    ("CDDL-1.0", "common development and distribution license", "^$"),
    ("Unlicense", "free and unencumbered software released into the public domain", "^$"),
    (
        "CC0-1.0",
        "cc0 1 0 universal|creative commons zero|creativecommons org publicdomain zero 1 0|cc0 public domain dedication"
        "|all copyright and related and neighboring rights to this software to the public domain",
        "^$",
    ),
    ("PSF-2.0", r"python software foundation license(?: version)? 2|psf license agreement for python", "^$"),
    ("Artistic-2.0", r"artistic license (?:version )?2 0|copyright c 2000 2006 the perl foundation", "^$"),
    (
        "Artistic-1.0-Perl",
        "artistic license",
        "artistic license (?:version )?2 0|same terms as|2000 2006 the perl foundation",
    ),
    (
        "Artistic-1.0-Perl OR GPL-1.0-or-later",
        r"(?:under the )?same terms as (?:the )?perl(?: \d| itself| programming)",
        "artistic license (?:version )?2",
    ),
    (
        "BSL-1.0",
        "boost software license version 1 0|any person or organization obtaining a copy of the software",
        "^$",
    ),
    ("Zlib", "altered source versions must be plainly marked", "^$"),
    ("WTFPL", "do what the fuck you want to public license", "^$"),
    ("OFL-1.1", "sil open font license|open font license ofl", "^$"),
    (
        "FSFAP",
        "copying and distribution of this file with or without modification are permitted in any medium",
        "^$",
    ),
    (
        "FSFULLR",
        "free software foundation gives unlimited permission to copy and or distribute it",
        "^$",
    ),
    ("SSPL-1.0", "server side public license", "^$"),
    ("BUSL-1.1", "business source license 1 1", "^$"),
    ("Elastic-2.0", "elastic license 2 0", "^$"),
    (
        PUBLIC_DOMAIN,
        r"(?:placed|released|dedicated) (?:in|into|to) the public domain|is in the public domain",
        "free and unencumbered",
    ),
)
NAMED = (
    ("MIT", r"under (?:the )?(?:terms of )?(?:the )?mit (?:x11 )?license|^mit license"),
    (
        "BSD-3-Clause",
        r"under (?:the )?(?:terms of )?(?:the )?(?:3 clause bsd|bsd 3 clause|new bsd|modified bsd|bsd style) licen",
    ),
    ("BSD-2-Clause", r"under (?:the )?(?:terms of )?(?:the )?(?:2 clause bsd|bsd 2 clause|simplified bsd) licen"),
    ("BSL-1.0", r"boost org license 1 0"),
)
GNU = (
    ("AGPL", r"(?:gnu affero general public license|\b(?:gnu )?agpl ?(?=v?\d|version|license))"),
    ("LGPL", r"(?:gnu (?:lesser|library) (?:general )?public license|\b(?:gnu )?lgpl ?(?=v?\d|version|license))"),
    ("GPL", r"(?:gnu general public license|\b(?:gnu )?gpl ?(?=v?\d|version|license))"),
    ("GFDL", r"(?:gnu free documentation license|\bgnu fdl\b)"),
)
GRANTED = r"(?:terms|conditions|version \d(?: \d)?) (?:and conditions )?of (?:either )?(?:the )?"
VERSION = r"(?:version|v) ?(\d)(?: (\d))?"
LATER = r"or (?:at your option )?(?:any )?later"
CREATIVE_COMMONS = re.compile(
    r"(?:creative commons|cc) (?:by|attribution)((?: (?:nc|nd|sa|sharealike|share alike|noncommercial|non commercial|"
    r"noderivatives|noderivs|no derivatives)){0,3}) (?:license )?(?:version )?(?:v)?(\d) (\d)"
    r"|^(?:creative commons legal code )?attribution((?: (?:noncommercial|noderivs|noderivatives|sharealike)){0,2}) "
    r"(\d) (\d) (?:unported|international|generic)"
)
CC_SHORT = {"sharealike": "SA", "share alike": "SA", "noncommercial": "NC", "non commercial": "NC"}
CC_SHORT |= {"noderivatives": "ND", "noderivs": "ND", "no derivatives": "ND", "sa": "SA", "nc": "NC", "nd": "ND"}
PERMISSIVE = (
    "MIT MIT-0 X11 NCSA BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear 0BSD ISC HPND PostgreSQL Apache-2.0 Unlicense "
    "CC0-1.0 PSF-2.0 Python-2.0 Artistic-2.0 BSL-1.0 Zlib WTFPL FSFAP FSFULLR BlueOak-1.0.0 Unicode-3.0 "
    "Unicode-DFS-2016 CC-BY-3.0 CC-BY-4.0 LicenseRef-public-domain"
)
PERMISSIVE_LICENCES = tuple(PERMISSIVE.split())


def licence_of(text: str) -> str | None:
    """The licence that a text states or is, as an SPDX expression; None where it states none that is known.

    Several licences are joined by AND, because nothing says that one may choose, unless it says "either … or".
    """
    named = IDENTIFIER.findall(text)
    if named:
        return _joined([_tidy(name) for name in named], "AND")
    words = normalise(text)
    if len(words) > FULL_TEXT:
        own = [name for name, has, _ in PHRASES if re.search(has, words[:TITLE])]
        if own or (own := _own_gnu(words[:TITLE])):
            return own[0]
    found = [name for name, has, has_not in PHRASES if re.search(has, words) and not re.search(has_not, words)]
    found += [name for name, has in NAMED if name not in found and re.search(has, words)]
    found += _gnu(words) + _creative_commons(words)
    if "PSF-2.0" in found:  # whose text tells the licences of older versions
        return "PSF-2.0"
    if len(found) > 1:  # said of parts, or of what a licence is not
        found = [name for name in found if name != PUBLIC_DOMAIN]
    return _joined(
        found,
        "OR" if re.search(r"under (?:the terms of )?either|at your (?:choice|option) (?:of|either)", words) else "AND",
    )


def declared_licence(name: str, text: str) -> str | None:
    """What a package's metadata file (one of `METADATA_NAMES`) declares."""
    if name.endswith(".json"):
        try:
            value = json.loads(text).get("license")
        except (ValueError, AttributeError, RecursionError):
            return None
        value = value.get("type") if isinstance(value, dict) else value
        return _tidy(value) if isinstance(value, str) and re.fullmatch(r"[\w.+() -]+", value) else None
    match = DECLARED.search(text)
    return _tidy(match[1]) if match and not match[1].lower().startswith("file") else None


def normalise(text: str) -> str:
    """Lower-case words of letters and digits, one space between."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("licence", "license")))


def _own_gnu(title: str) -> list[str]:
    """A GNU licence by the title of its own text."""
    for name, words in GNU:
        if own := re.search(rf"{words} {VERSION}", title):
            return [f"{name}-{own[1]}.{own[2] if name in ('LGPL', 'GFDL') and own[1] < '3' and own[2] else 0}-only"]
    return []


def _gnu(words: str) -> list[str]:
    """GNU licences that a notice grants, or else names, with their versions."""
    granted = [(name, title) for name, title in GNU if re.search(GRANTED + title, words)]
    found = []
    for name, title in granted or GNU:
        match = re.search((GRANTED if granted else "") + title, words)
        if not match:
            continue
        around = words[max(0, match.start() - 160) : match.end() + 260]
        version = re.search(VERSION, around) or re.search(rf"{title} (\d)(?: (\d))?", around)
        later = "or-later" if re.search(LATER, around) else "only"
        number = f"{version[1]}.{version[2] if version[2] == '1' else 0}" if version else "1.0"
        found.append(f"{name}-{number}-{later if version else 'or-later'}")
    return found


def _creative_commons(words: str) -> list[str]:
    match = CREATIVE_COMMONS.search(words)
    if not match:
        return []
    kind, major, minor = match.group(1, 2, 3) if match[2] else match.group(4, 5, 6)
    parts = [short for long, short in CC_SHORT.items() if re.search(rf"\b{long}\b", kind)]
    return ["-".join(["CC-BY", *[part for part in ("NC", "ND", "SA") if part in parts], f"{major}.{minor}"])]


def _joined(names: list[str], word: str) -> str | None:
    unique = list(dict.fromkeys(names))
    return f" {word} ".join(f"({name})" if " " in name and len(unique) > 1 else name for name in unique) or None


def _tidy(name: str) -> str:
    return re.sub(r"\s+", " ", name).strip(" .-*/")


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be met by allowed licences alone; AND binds tighter than OR."""
    tokens = re.findall(r"[()]|[^\s()]+", expression)

    def alternatives() -> bool:
        value = all_of()
        while tokens[:1] and tokens[0].upper() == "OR":
            tokens.pop(0)
            value = all_of() or value
        return value

    def all_of() -> bool:
        value = one()
        while tokens[:1] and tokens[0].upper() == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one() -> bool:
        token = tokens.pop(0) if tokens else ""
        if token == "(":
            value = alternatives()
            if tokens[:1] == [")"]:
                tokens.pop(0)
        else:
            value = token in allowed
        if tokens[:1] and tokens[0].upper() == "WITH":
            del tokens[:2]
        return value

    return alternatives() and not tokens


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class Licences:
    """Map stage that rejects source files by the licence in their metadata (see `source_code.py`).

    Attributes:
        allowed: SPDX identifiers; a file stays if its licence can be met by these alone.
        keep_unknown: keep files of which no licence is known.
    """

    allowed: Sequence[str] = PERMISSIVE_LICENCES
    keep_unknown: bool = False
    name: str = "licences"

    def __post_init__(self):
        check_fields(self)

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Rules `licence` (known and not allowed) and `unknown_licence`."""
        allowed = set(self.allowed)
        decided: dict[str, list[str]] = {"licence": [], "unknown_licence": []}
        for id_, metadata in zip(documents["id"].to_pylist(), documents["metadata"].to_pylist(), strict=True):
            licence = json.loads(metadata).get("licence")
            if licence is None and not self.keep_unknown:
                decided["unknown_licence"].append(id_)
            elif licence is not None and not is_allowed(licence, allowed):
                decided["licence"].append(id_)
        tables = [rejections(pa.array(ids, pa.string()), rule) for rule, ids in decided.items()]
        return pa.concat_tables([DECISIONS.empty_table(), *tables])
