# ruff: noqa: RUF001 — apostrophes come in two shapes
"""English as a word tokenizer has to know it: contractions that split, abbreviations and signs that stay whole.

The conventions are those of the Penn Treebank as spaCy's English tokenizer applies them, because the thresholds of
published quality filters were set on such words. Text in another language simply never meets these strings.
"""

import functools
import itertools

PRONOUNS = ("i", "you", "he", "she", "it", "we", "they", "that", "this", "these", "those", "there")
QUESTION_WORDS = ("who", "what", "when", "where", "why", "how")
NEGATED = (
    *("ca", "could", "do", "does", "did", "had", "may", "might", "must", "need", "ought", "sha", "should", "wo"),
    *("would", "ai", "are", "is", "was", "were", "have", "has", "dare"),
)
PERFECT = ("could", "might", "must", "should", "would", "not")
# Words in their own right, though they look like contractions without the apostrophe.
NOT_CONTRACTED = {"ill", "its", "hell", "shell", "shed", "were", "well", "whore", "is", "here", "ire"}
UNITS = (
    *("km", "km²", "km³", "m", "m²", "m³", "dm", "dm²", "dm³", "cm", "cm²", "cm³", "mm", "mm²", "mm³", "ha", "µm"),
    *("nm", "yd", "in", "ft", "kg", "g", "mg", "µg", "t", "lb", "oz", "m/s", "km/h", "kmh", "mph", "hPa", "Pa"),
    *("mbar", "mb", "MB", "kb", "KB", "gb", "GB", "tb", "TB", "T", "G", "M", "K", "%"),
)
ABBREVIATIONS = (
    *("a.m.", "p.m.", "e.g.", "E.g.", "E.G.", "i.e.", "I.e.", "I.E.", "v.s.", "vs.", "Ph.D.", "D.C.", "N.C.", "N.D."),
    *("N.H.", "N.J.", "N.M.", "N.Y.", "S.C.", "and/or", "w/o", "Adm.", "Bros.", "co.", "Co.", "Corp.", "Dr.", "Gen."),
    *("Gov.", "Inc.", "Jr.", "Ltd.", "Messrs.", "Mr.", "Mrs.", "Ms.", "Mt.", "Prof.", "Rep.", "Rev.", "Sen.", "St."),
    *("Jan.", "Feb.", "Mar.", "Apr.", "Jun.", "Jul.", "Aug.", "Sep.", "Sept.", "Oct.", "Nov.", "Dec.", "Ak.", "Ala."),
    *("Ariz.", "Ark.", "Calif.", "Colo.", "Conn.", "Del.", "Fla.", "Ga.", "Ia.", "Id.", "Ill.", "Ind.", "Kan."),
    *("Kans.", "Ky.", "La.", "Mass.", "Md.", "Mich.", "Minn.", "Miss.", "Mo.", "Mont.", "Neb.", "Nebr.", "Nev."),
    *("Okla.", "Ore.", "Pa.", "Tenn.", "Va.", "Wash.", "Wis."),
)
CLIPPED = ("d", "ll", "re", "s", "S", "em", "bout", "cause", "cos", "coz", "cuz", "nuff", "Cause", "Cos", "Coz", "Cuz")
DROPPED_G = ("doin", "goin", "havin", "lovin", "nothin", "nuthin", "somethin", "ol")
# Emoticons, and what else is written with signs that would be cut off; `):` and `[:` matter in code.
SIGNS = (
    *("''", '\\")', "<space>", ":)", ":))", ":)))", ":-)", ":-))", ":-)))", "(:", "(-:", "=)", "(=", ":]", ":-]"),
    *("[:", "[-:", "[=", "=]", ":o)", "(o:", ":}", ":-}", "8)", "8-)", "(-8", ";)", ";-)", "(;", "(-;", ":(", ":(("),
    *(":(((", ":-(", ":-((", ":-(((", "):", ")-:", "=(", ">:(", ":')", ":'-)", ":'(", ":'-(", ":/", ":-/", "=/"),
    *("=|", ":|", ":-|", "]=", "=[", ":1", ":P", ":-P", ":p", ":-p", ":O", ":-O", ":o", ":-o", ":0", ":-0", ":()"),
    *(">:o", ":*", ":-*", ":3", ":-3", "=3", ":>", ":->", ":X", ":-X", ":x", ":-x", ":D", ":-D", ";D", ";-D", "=D"),
    *("8D", "8-D", "^_^", "^__^", "^___^", ">.<", ">.>", "<.<", "._.", ";_;", "-_-", "-__-", "v.v", "V.V", "v_v"),
    *("V_V", "o_o", "o_O", "O_o", "O_O", "0_o", "o_0", "0_0", "o.O", "O.o", "O.O", "o.o", "0.0", "o.0", "0.o", "@_@"),
    *("<3", "<33", "<333", "</3", "(^_^)", "(-_-)", "(._.)", "(>_<)", "(*_*)"),
)


@functools.cache
def contractions() -> dict[str, tuple[int, ...]]:
    """{word: where it splits}, in characters: {"don't": (2,), "cannot": (3,), …}."""
    parts = {("can", "not"), ("gon", "na"), ("got", "ta"), ("let", "'s"), ("i", "'m"), ("i", "m"), ("y'", "all")}
    parts |= {(str(hour), half) for hour in range(1, 13) for half in ("am", "pm")}
    parts |= {("c'm", "on"), ("y", "all"), ("i", "'m", "a"), ("i", "m", "a")}
    endings = [("'d",), ("'ll",), ("'ve",), ("'re",), ("'s",), ("'d", "'ve"), ("'ll", "'ve")]
    for stem, ending in itertools.product(PRONOUNS + QUESTION_WORDS, endings):
        parts.add((stem, *ending))
        parts.add((stem, *(part.replace("'", "") for part in ending)))
    for stem in NEGATED:
        parts |= {(stem, "n't"), (stem, "nt"), (stem, "n't", "'ve"), (stem, "nt", "ve")}
    for stem in PERFECT:
        parts |= {(stem, "'ve"), (stem, "ve")}
    splits = {}
    for word in parts:
        whole = "".join(word)
        cuts = tuple(itertools.accumulate(map(len, word[:-1])))
        if whole not in NOT_CONTRACTED:
            for form in (whole, whole[:1].upper() + whole[1:]):
                splits[form] = splits[form.replace("'", "’")] = cuts
    return splits


@functools.cache
def wholes() -> tuple[str, ...]:
    """Strings of several marks that are one word."""
    clipped = [f"{mark}{word}" for mark in "'’" for word in CLIPPED]
    dropped = [f"{form}{mark}" for mark in "'’" for word in DROPPED_G for form in (word, word.capitalize())]
    initials = [f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyzäöü"]
    return (*ABBREVIATIONS, *SIGNS, *clipped, *dropped, *initials, "’’")
