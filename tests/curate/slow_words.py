"""Words by the same rules as `pretrain.curate.words`, one run and one character at a time: slow and plain."""

import itertools
import re
import unicodedata

from pretrain.curate import english, marks

LONGEST_RUN = 10_000


def words(text: str) -> list[str]:
    """The words of a text."""
    return [word for run in text.split() for word in cut(run)]


def cut(run: str) -> list[str]:
    """The words of one run of characters."""
    if len(run) > LONGEST_RUN:
        return [run]
    left = 0
    while left < len(run) and is_prefix(run, left):
        left += 1
    right = len(run)
    while right > left and is_suffix(run, right - 1):
        right -= 1
    places = {0, len(run), left, right}
    for index in [*range(left), *range(right, len(run))]:
        is_glued = run[index - 1 : index + 1] == ".." or (
            index > right and run[index] in "sS" and run[index - 1] in marks.APOSTROPHES
        )
        if not (index > 0 and (index < left or index > right) and is_glued):
            places.add(index)
    core_end = cut_unit(run, left, right)
    places.add(core_end)
    core = run[left:core_end]
    inner = infixes(core)
    if not is_url(core):
        places |= {left + place for place in inner}
    if not any(left < place < core_end for place in places):
        places |= {left + place for place in english.contractions().get(core, ())}
    places = keep_whole(run, places)
    ordered = sorted(places)
    return [run[start:end] for start, end in itertools.pairwise(ordered)]


def kind(character: str) -> str:
    return unicodedata.category(character)


def is_letter(character: str) -> bool:
    return kind(character)[0] == "L"


def is_lower(character: str) -> bool:
    return is_letter(character) and kind(character) not in ("Lu", "Lt")


def is_upper(character: str) -> bool:
    return is_letter(character) and kind(character) != "Ll"


def is_digit(character: str) -> bool:
    return character in set("0123456789")


def is_icon(character: str) -> bool:
    return kind(character) == "So" and character != "°"


def around(run: str, index: int) -> tuple[str, str]:
    """The characters before and after one; "\\0" where there is none, which no rule knows."""
    return run[index - 1] if index else "\0", run[index + 1] if index + 1 < len(run) else "\0"


def in_row_of_stops(run: str, index: int) -> bool:
    return run[index] == "." and "." in around(run, index)


def is_prefix(run: str, index: int) -> bool:
    character, after = run[index], around(run, index)[1]
    known = marks.PUNCTUATION + marks.QUOTES + marks.CURRENCY + marks.ONLY_PREFIX + marks.DASHES
    plus = character == "+" and not is_digit(after)
    return character in known or is_icon(character) or plus or in_row_of_stops(run, index)


def is_suffix(run: str, index: int) -> bool:
    character, before = run[index], around(run, index)[0]
    if (
        character in marks.PUNCTUATION + marks.QUOTES + marks.DASHES
        or is_icon(character)
        or in_row_of_stops(run, index)
    ):
        return True
    if character in "sS":
        return before in marks.APOSTROPHES
    if character == "+" or character in marks.CURRENCY:
        return is_digit(before)
    two_before = run[index - 2] if index > 1 else "\0"
    ends_sentence = is_digit(before) or is_lower(before) or before in marks.PUNCTUATION + marks.QUOTES + "%²-+|"
    return character == "." and (ends_sentence or (is_upper(before) and is_upper(two_before)))


def cut_unit(run: str, left: int, right: int) -> int:
    for length in sorted({len(unit) for unit in english.UNITS}, reverse=True):
        start = right - length
        if start > left and is_digit(run[start - 1]) and run[start:right] in english.UNITS:
            right = start
    return right


def infixes(core: str) -> set[int]:
    """Where a core would be cut around marks inside."""
    places: set[int] = set()
    for index, character in enumerate(core):
        before, after = around(core, index)
        word_before = is_letter(before) or is_digit(before)
        if (
            (character in "+-*^" and is_digit(before) and (is_digit(after) or after == "-"))
            or (
                character == "."
                and not in_row_of_stops(core, index)
                and (is_lower(before) or before in marks.QUOTES)
                and (is_upper(after) or after in marks.QUOTES)
            )
            or (character == "," and is_letter(before) and is_letter(after))
            or (character in ":<>=/" and word_before and is_letter(after))
            or is_icon(character)
            or character == "…"
        ):
            places |= {index, index + 1}
    for match in re.finditer(r"\.{2,}", core):
        places |= {match.start(), match.end()}
    for mark, most in marks.HYPHENS:
        for match in re.finditer(re.escape(mark) + "+", core):
            before, after = around(core, match.start())[0], around(core, match.end() - 1)[1]
            fits = match.end() - match.start() <= most and (is_letter(before) or is_digit(before))
            if fits and is_letter(after):
                places |= {match.start(), match.end()}
    return {place for place in places if 0 < place < len(core)}


def is_url(core: str) -> bool:
    name = r"[A-Za-z0-9\xa1-\uffff](?:[A-Za-z0-9\xa1-\uffff_-]*[A-Za-z0-9\xa1-\uffff])?"
    host = rf"(?:[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}|(?:{name}\.)+[a-z]{{2,63}})"
    around_host = rf"(?:[A-Za-z0-9_+.-]{{2,}}://)?(?:.+@)?{host}(?::[0-9]{{2,5}})?(?:[/?#].*)?"
    return re.fullmatch(around_host, core, re.DOTALL) is not None


def keep_whole(run: str, places: set[int]) -> set[int]:
    taken: set[int] = set()
    wholes = set(english.wholes())
    for length in sorted({len(whole) for whole in wholes}, reverse=True):
        for start in range(len(run) - length + 1):
            fits = start in places and start + length in places and run[start : start + length] in wholes
            if fits and not taken & {start, start + length - 1}:
                taken |= set(range(start, start + length))
                places = places - set(range(start + 1, start + length))
    return places
