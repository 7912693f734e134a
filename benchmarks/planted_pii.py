"""Personal data planted in real text: what `pretrain.curate.pii` must find, beside what looks like it and is none.

Numbers are drawn at random but valid (Luhn's sum, libphonenumber's plans of 40 countries, public address ranges), then
written in the formats that people use; keys follow what each service publishes; e-mail addresses are those of a list.
Hard negatives are drawn in the same way: versions, hashes, dates, ISBNs, card-like numbers with a wrong check digit.
"""

import ipaddress
import random
import string
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import phonenumbers

from pretrain.curate.pii_numbers import luhn

COUNTRIES = (
    "US",
    "GB",
    "DE",
    "FR",
    "IT",
    "ES",
    "PT",
    "NL",
    "BE",
    "CH",
    "AT",
    "SE",
    "NO",
    "DK",
    "FI",
    "PL",
    "CZ",
    "HU",
    "RO",
    "GR",
    "TR",
    "RU",
    "UA",
    "IN",
    "CN",
    "JP",
    "KR",
    "AU",
    "NZ",
    "ZA",
    "BR",
    "AR",
    "MX",
    "CA",
)
NATIONAL_COUNTRIES = {"US", "GB"}


class Planted(NamedTuple):
    """A text and the spans of (kind, start, end) planted in it."""

    text: str
    spans: list[tuple[str, int, int]]


def plant(passages: Sequence[str], emails: Sequence[str], seed: int) -> list[Planted]:
    """Puts one to three sentences with personal data or hard negatives between the paragraphs of each passage."""
    draw = random.Random(seed)
    makers = makers_of(draw, emails)
    return [_plant(passage, draw, makers) for passage in passages]


def _plant(passage: str, draw: random.Random, makers: dict[str, list[Callable[[], tuple[str, str]]]]) -> Planted:
    text, spans = "", []
    for paragraph in passage.split("\n\n"):
        text += paragraph
        if draw.random() < 0.5:
            kind = draw.choice(list(makers))
            frame, value = draw.choice(makers[kind])()
            before, after = frame.split("{}")
            text += draw.choice(["\n", " ", "\n\n"]) + before
            if kind != "nothing":
                spans.append((kind, len(text), len(text) + len(value)))
            text += value + after
        text += "\n\n"
    return Planted(text, spans)


def makers_of(draw: random.Random, emails: Sequence[str]) -> dict[str, list[Callable[[], tuple[str, str]]]]:
    """For each kind functions that give a frame with {} and what stands in its place."""

    def framed(frames: Sequence[str], make: Callable[[], str]) -> Callable[[], tuple[str, str]]:
        return lambda: (draw.choice(frames), make())

    def signs(alphabet: str, length: int) -> str:
        return "".join(draw.choices(alphabet, k=length))

    alphanumeric = string.ascii_letters + string.digits
    url_safe = alphanumeric + "-_"
    services = {
        "AWS": lambda: "AKIA" + signs(string.ascii_uppercase + "234567", 16),
        "GitHub": lambda: draw.choice(["ghp_", "gho_", "ghs_"]) + signs(alphanumeric, 36),
        "GitHub fine": lambda: "github_pat_" + signs(alphanumeric, 22) + "_" + signs(alphanumeric, 59),
        "GitLab": lambda: "glpat-" + signs(url_safe, 20),
        "Slack": lambda: f"xoxb-{signs(string.digits, 12)}-{signs(string.digits, 12)}-{signs(alphanumeric, 24)}",
        "Google": lambda: "AIza" + signs(url_safe, 35),
        "Stripe": lambda: "sk_live_" + signs(alphanumeric, 24),
        "OpenAI": lambda: "sk-proj-" + signs(url_safe, 48),
        "Hugging Face": lambda: "hf_" + signs(string.ascii_letters, 34),
        "npm": lambda: "npm_" + signs(alphanumeric, 36),
        "JWT": lambda: f"eyJhbGciOiJIUzI1NiJ9.eyJ{signs(url_safe, 60)}.{signs(url_safe, 43)}",
        "private key": lambda: _private_key(draw),
    }
    secret_frames = [
        "The key is {} for now.",
        "export KEY={}",
        'key = "{}"',
        "{}",
        "curl -H 'Authorization: Bearer {}' x",
    ]
    generic_frames = [
        'API_KEY="{}"',
        "password: {}",
        "client_secret = '{}',",
        '"access_token": "{}"',
        "SECRET_KEY={}\n",
    ]
    return {
        "email": [framed(EMAIL_FRAMES, lambda: draw.choice(emails))],
        "ip": [framed(IP_FRAMES, lambda: _ipv4(draw)), framed(IP_FRAMES[:4], lambda: _ipv6(draw))],
        "card": [framed(CARD_FRAMES, lambda: _card(draw))],
        "phone": [framed(PHONE_FRAMES, lambda: _phone(draw)), framed(CALL_FRAMES, lambda: _phone(draw, "US"))],
        "secret": [
            *(framed(secret_frames[:4], make) for make in services.values()),
            framed(generic_frames, lambda: signs(alphanumeric, draw.randint(20, 40))),
            framed(generic_frames, lambda: signs(alphanumeric + "+/", 40)),
            framed(["postgres://admin:{}@db.internal/main"], lambda: signs(alphanumeric, 14)),
        ],
        "nothing": negatives(draw, signs, framed),
    }


EMAIL_FRAMES = [
    "Write to {} for more.",
    "<{}>",
    "mailto:{}",
    "Author: A. Person <{}>",
    "{}",
    "({}, 2019)",
    "from {}, who",
]
IP_FRAMES = [
    "The server at {} answered.",
    "connect to {}",
    "{} - - [12/Mar/2021] GET /",
    "Received: from host ([{}])",
    "http://{}/x",
    "host={}",
]
CARD_FRAMES = ["Card number: {}", "She paid with {} yesterday.", "{}", "cc={};", "number {}, expires 09/27"]
PHONE_FRAMES = ["Phone: {}", "Call {} today.", "{}", "Tel. {}", "fax {}, or", "(mobile: {})", "Reach us on {} any time"]
CALL_FRAMES = ["Phone: {}", "Call {} now.", "Tel: {}", "call us at {} for"]


def _ipv4(draw: random.Random) -> str:
    while True:
        address = ipaddress.IPv4Address(draw.getrandbits(32))
        if address.is_global and not address.is_multicast:
            return str(address)


def _ipv6(draw: random.Random) -> str:
    address = ipaddress.IPv6Address((0x2A00 << 112) | (draw.getrandbits(64) << 48) | draw.getrandbits(16))
    return draw.choice([address.compressed, address.exploded, address.compressed.upper()])


def _card(draw: random.Random) -> str:
    prefix, length = draw.choice(
        [("4", 16), ("51", 16), ("55", 16), ("34", 15), ("37", 15), ("6011", 16), ("3530", 16)]
    )
    body = prefix + "".join(draw.choices(string.digits, k=length - len(prefix) - 1))
    digits = next(body + check for check in string.digits if luhn(body + check))
    groups = (4, 6, 5) if length == 15 else (4, 4, 4, 4)
    separator = draw.choice(["", " ", "-"])
    ends = [sum(groups[: index + 1]) for index in range(len(groups))]
    return separator.join(digits[end - size : end] for end, size in zip(ends, groups, strict=True))


def _phone(draw: random.Random, country: str | None = None) -> str:
    country = country or draw.choice(COUNTRIES)
    while True:
        example = phonenumbers.example_number_for_type(country, draw.choice([0, 1]))
        national = str(example.national_number)
        changed = national[:3] + "".join(draw.choices(string.digits, k=len(national) - 3))
        number = phonenumbers.PhoneNumber(country_code=example.country_code, national_number=int(changed))
        if phonenumbers.is_valid_number(number):
            break
    formats = [phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164]
    if country in NATIONAL_COUNTRIES:
        formats.append(phonenumbers.PhoneNumberFormat.NATIONAL)
    written = phonenumbers.format_number(number, draw.choice(formats))
    return written.replace(" ", draw.choice([" ", ".", "-", " "])) if "(" not in written else written


def _private_key(draw: random.Random) -> str:
    kind = draw.choice(["RSA ", "EC ", "OPENSSH ", ""])
    lines = ["".join(draw.choices(string.ascii_letters + string.digits + "+/", k=64)) for _ in range(12)]
    return f"-----BEGIN {kind}PRIVATE KEY-----\n" + "\n".join(lines) + f"\n-----END {kind}PRIVATE KEY-----"


def negatives(draw: random.Random, signs: Callable, framed: Callable) -> list[Callable[[], tuple[str, str]]]:
    """What is often taken for personal data."""

    def number(low: int, high: int) -> str:
        return str(draw.randint(low, high))

    def wrong_card() -> str:
        body = "4" + signs(string.digits, 14)
        return next(body + check for check in string.digits if not luhn(body + check))

    def version() -> str:
        return ".".join(number(0, 30) for _ in range(4))

    return [
        framed(["version {} is out", "upgraded to v{}", "(>= {})", "pkg-{}.tar.gz", "release {}, then"], version),
        framed(
            ["at {} sharp", "on {}", "{} UTC"],
            lambda: f"20{number(10, 29)}-0{number(1, 9)}-1{number(0, 9)} 0{number(1, 9)}:3{number(0, 9)}:55",
        ),
        framed(["in {}", "{}:"], lambda: f"{number(10, 28)}.{number(10, 12)}.{number(1990, 2024)}"),
        framed(
            ["ISBN {}", "isbn: {}"],
            lambda: f"978-{number(0, 9)}-{number(100, 999)}-{number(10000, 99999)}-{number(0, 9)}",
        ),
        framed(["commit {}", "sha1 {}", "{}  file.txt"], lambda: signs("0123456789abcdef", 40)),
        framed(["sha256:{}", "digest {}"], lambda: signs("0123456789abcdef", 64)),
        framed(["id {}", "{}"], lambda: str(uuid.UUID(int=draw.getrandbits(128)))),
        framed(["order {}", "serial number {}"], wrong_card),
        framed(
            ["listening on {}", "ping {}"],
            lambda: draw.choice(["127.0.0.1", "192.168.1.7", "10.0.3.4", "fe80::1", "0.0.0.0"]),
        ),
        framed(["{} is the ratio", "= {}"], lambda: f"0.{signs(string.digits, 16)}"),
        framed(["the range {}", "pages {}"], lambda: f"{number(100, 999)}-{number(1000, 9999)}"),
        framed(["offset {} bytes", "timestamp {}"], lambda: number(10**9, 10**10 - 1)),
        framed(
            ["y = x @ {}", "@{}", "z@{}"],
            lambda: draw.choice(["self.weight", "property.setter", "functools.wraps(f)", "w.T"]),
        ),
        framed(
            ["clone {}"],
            lambda: f"git@github.com:{signs(string.ascii_lowercase, 6)}/{signs(string.ascii_lowercase, 5)}.git",
        ),
        framed(
            ["mail {}"], lambda: draw.choice(["user@example.com", "root@localhost", "alice@example.org", "me@test"])
        ),
        framed(["password = {}", "token: {}", "api_key={}"], lambda: draw.choice(NOT_SECRET)),
        framed(["MAC {}", "{} is the time"], lambda: ":".join(signs("0123456789abcdef", 2) for _ in range(6))),
        framed(["std::{}"], lambda: draw.choice(["vector::iterator", "dead::beef", "cafe::bad::f00d"])),
    ]


NOT_SECRET = [
    'os.environ["API_KEY"]',
    "getpass.getpass(prompt)",
    "<your-api-key-here>",
    "YOUR_API_KEY_HERE_1",
    "self.config.token_value2",
    "${{ secrets.GITHUB_TOKEN }}",
    "xxxxxxxxxxxxxxxx1234",
    "tokenizer.encode(text2)",
    "changeme-please-1",
]
