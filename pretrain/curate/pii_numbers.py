"""Finds e-mail addresses, IP addresses, card numbers and phone numbers in a text."""

import ipaddress
import re
from collections.abc import Iterator, Sequence

import phonenumbers

from pretrain.core.errors import check

Span = tuple[int, int]

EMAIL_PREFILTER = r"[A-Za-z0-9_.!#$%&'*+/=?^{|}~-]@[A-Za-z0-9]"
LOCAL_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9.!#$%&'*+/=?^_{|}~-]{0,63}$")
LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DOMAIN = re.compile(rf"@((?:{LABEL}\.){{1,8}}([A-Za-z]{{2,24}}))(?![A-Za-z0-9_(=[]|-\w|:[\w~/])")
# Top-level domains that people write from; every country code has two letters. `x@self.weight` ends in none.
TOP_LEVEL = frozenset(
    """com org net edu gov mil int info biz name pro aero coop museum jobs mobi travel tel cat asia post app dev page
    blog cloud email online site store shop tech xyz club live life world today news agency company digital solutions
    team services group studio design media network systems center global academy education university school software
    top space website work press wiki art fun one africa berlin london paris tokyo amsterdam wien swiss bayern koeln
    health care law legal bank finance money capital consulting engineering science energy games game photo photography
    video music film house international foundation ngo ong church social support community vip ltd inc llc
    gmbh""".split()  # noqa: SIM905 (a list of 130 strings would fill the page)
)
NOT_PERSONAL = re.compile(
    r"(?:^|\.)(?:example\.(?:com|net|org|edu)|example|invalid|test|localhost|local)$", re.IGNORECASE
)


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses, but not those under names reserved for examples (RFC 2606)."""
    end, at = 0, text.find("@")
    while at >= 0:
        local = LOCAL_PART.search(text, max(end, at - 64), at)
        domain = DOMAIN.match(text, at)
        if local and domain and not NOT_PERSONAL.search(domain[1]):
            top = domain[2].lower()
            is_path = text[max(0, local.start() - 1) : local.start()] in ("/", "=") and "//" in text[at - 64 : at]
            if (len(top) == 2 or top in TOP_LEVEL or top.startswith("xn")) and not is_path:
                yield local.start(), domain.end()
                end = domain.end()
        at = text.find("@", max(at + 1, end))


IP_PREFILTER = r"\d\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]"
QUAD = r"(?:\d{1,3}\.){3}\d{1,3}(?![\w\-+~]|\.\w)"
IPV4 = re.compile(rf"(?<![\w.\-+~/:^=@]){QUAD}|(?<=[/@:=]){QUAD}")
GROUP = "[0-9A-Fa-f]{1,4}"
IPV6 = re.compile(rf"(?<![\w:.])(?:{GROUP}:){{2,7}}(?::|{GROUP})(?:[0-9A-Fa-f:]{{0,34}}[0-9A-Fa-f])?(?![\w:]|\.\d)")
VERSION = r"\b(?:versions?|ver|v|rev|revision|release|section|sect|chapter|oid|build|§|since|upto)\w*\.?[ =:(\"']*"
VERSION_BEFORE = re.compile(rf"(?:{VERSION}|[<>~]=? ?|==|/v?)$", re.IGNORECASE)
UNICAST = ipaddress.ip_network("2000::/3")


def find_ips(text: str, private: bool = False) -> Iterator[Span]:
    """IPv4 and IPv6 addresses that are reachable from the internet, or all of them; no version numbers."""
    spans = []
    for match in IPV4.finditer(text):
        before = text[max(0, match.start() - 16) : match.start()]
        is_version = VERSION_BEFORE.search(before) and not before.endswith("//")
        if not is_version and _is_address(match[0], private):
            spans.append(match.span())
    for match in IPV6.finditer(text):
        if _is_address(match[0], private):
            spans.append(match.span())
    yield from sorted(spans)


def _is_address(text: str, private: bool) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if private:
        return True
    return address.is_global and not address.is_multicast and (address.version == 4 or address in UNICAST)


CARD_PREFILTER = r"\d{4}[ -]?\d{4}[ -]?\d{4}|\d{4}[ -]\d{6}[ -]\d{4}"
CARD = re.compile(
    r"(?<![\w.,+\-])(?<!\d{4} )(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5})"
    r"(?!\w|[-.,]\d| \d{4})"
)
# Prefixes of issuers, with the lengths of their numbers (ISO/IEC 7812).
ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"6011|65|64[4-9]"), (16, 17, 18, 19)),  # Discover
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 17, 18, 19)),  # JCB
    (re.compile(r"3(?:0[0-5]|[689])"), (14,)),  # Diners Club
    (re.compile(r"62"), (16, 17, 18, 19)),  # UnionPay
)


def find_cards(text: str) -> Iterator[Span]:
    """Payment card numbers: an issuer's prefix and length, and Luhn's check digit."""
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        is_issued = any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in ISSUERS)
        if is_issued and luhn(digits) and len(set(digits)) > 1:
            yield match.span()


def luhn(digits: str) -> bool:
    """True if the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    doubled = [int(digit) * (2 if index % 2 else 1) for index, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


PHONE_PREFILTER = r"\+\(?\d[\d ()./\-]{6,}\d|\(\d{2,5}\)[ -]?\d|\b\d{2,5}[ ./\-]\d{2,4}[ ./\-]?\d{2,6}"
PHONE = re.compile(r"(?<![\w+./#\-:$])(?:\+ ?\(?\d|\(?\d)(?: ?[\d()./\-]| (?=[\d(])){6,22}(?<=\d)(?!\w|[./\-:=]\w)")
CALL_WORD = "tel|telephone|phone|fon|call(?:ing|ed)?|fax|mobile|cell|contact|dial|hotline|whats ?app|sms|text(?: me)?"
CALL = re.compile(rf"\b(?:{CALL_WORD})\b\W{{0,3}}(?:(?:no|numbers?|us|me|at|on|is)\b\W{{0,3}}){{0,3}}$", re.IGNORECASE)
NATIONAL = re.compile(
    r"\(\d{2,5}\) ?\d{3,4}[ .-]\d{3,4}|(?:1[ .-])?\d{3}([ .-])\d{3}\1\d{4}|0\d{2,4}[ -]\d{3,4}[ -]?\d{3,4}"
)
DATE = re.compile(r"(?:19|20)\d\d[./ \-]\d\d?[./ \-]\d|\d\d?([./ \-])\d\d?\1(?:19|20)\d\d\b")


def check_regions(regions: Sequence[str]) -> None:
    """Refuses countries that libphonenumber does not know."""
    unknown = sorted(set(regions) - set(phonenumbers.SUPPORTED_REGIONS))
    check(not unknown, f"Pii.phone_regions: {unknown} unknown; use ISO 3166-1 codes such as 'US'")


def find_phones(text: str, regions: Sequence[str] = ("US", "GB")) -> Iterator[Span]:
    """Phone numbers valid by their country's plan: international ones, and national ones written like or called so."""
    for match in PHONE.finditer(text):
        candidate = match[0]
        if candidate.startswith("+"):
            is_phone = _is_valid(candidate, None)
        elif DATE.match(candidate) or sum(character.isdigit() for character in candidate) > 15:
            is_phone = False
        else:
            is_called = CALL.search(text, max(0, match.start() - 32), match.start())
            is_national = bool(is_called or NATIONAL.fullmatch(candidate))
            is_phone = is_national and any(_is_valid(candidate, region) for region in regions)
        if is_phone:
            yield match.span()


def _is_valid(candidate: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(candidate, region))
    except phonenumbers.NumberParseException:
        return False
