"""Finds keys and tokens in a text: those of known services by their form, others by where they stand and by entropy."""

import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int]

# Known services, by the prefix that they give their keys.
SERVICES = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",  # AWS access key
    r"gh[pousr]_[A-Za-z0-9]{36,251}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{22,243}",
    r"gl(?:pat|dt|rt|cbt|ptt|agent|soat)-[A-Za-z0-9_-]{20,64}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",  # Slack
    r"xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]+",
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"ya29\.[A-Za-z0-9_-]{20,250}",
    r"GOCSPX-[A-Za-z0-9_-]{28}",
    r"[srp]k_(?:live|test)_[A-Za-z0-9]{16,250}",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{24,64}",
    r"sk-(?:proj-|ant-|svcacct-|or-)?[A-Za-z0-9_-]{20,250}",  # OpenAI, Anthropic
    r"hf_[A-Za-z0-9]{30,64}",  # Hugging Face
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{50,250}",
    r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}",  # SendGrid
    r"(?:SK|AC)[0-9a-f]{32}",  # Twilio
    r"\d{8,10}:AA[A-Za-z0-9_-]{32,35}",  # Telegram
    r"dop_v1_[a-f0-9]{64}",  # DigitalOcean
    r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",  # Shopify
    r"AGE-SECRET-KEY-1[A-Z0-9]{58}",
    r"eyJ[A-Za-z0-9_-]{8,4000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}",  # JSON Web Token
)
SERVICE = re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(SERVICES)})(?![A-Za-z0-9_])")
BLOCK = re.compile(
    r"-----BEGIN ([A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----(?:[^-]|-(?!----)){1,20000}-----END \1-----"
)
IN_URL = re.compile(r"(?<=://)[^\s/:@'\"<>]{1,64}:([^\s/:@'\"<>{}$]{3,128})@(?=[\w\[])")
NAME = (
    r"(?:api|access|secret|private|auth|encryption|signing|client|account|app|license)[_ .-]?(?:key|token|secret|id)"
    r"|secret|token|passw(?:or)?d|passphrase|pwd|credentials?|bearer|authorization"
)
ASSIGNED = re.compile(
    rf"(?i:{NAME})[A-Za-z0-9_-]{{0,24}}[\"']?\s{{0,4}}(?:=>|:=|[=:]|\s)\s{{0,4}}(?:(?i:basic|bearer|token)\s)?[\"']?"
    r"([A-Za-z0-9+/_=.~!@#$%^&*-]{8,512})"
)
# The same without what RE2 lacks: what no line with a secret goes without.
PREFILTER = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]|gh[pousr]_|github_pat_|gl[a-z]+-[A-Za-z0-9_-]{20}|xox[abeoprs]-|xapp-|AIza|ya29\."
    r"|GOCSPX|[srp]k_(?:live|test)_|whsec_|sk-[a-zA-Z0-9]|hf_[A-Za-z0-9]{30}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50}"
    r"|SG\.[A-Za-z0-9_-]{16}|(?:SK|AC)[0-9a-f]{32}|:AA[A-Za-z0-9_-]{32}|dop_v1_|shp(?:at|ca|pa|ss)_|AGE-SECRET|eyJ[A-Za-z0-9_-]{8}"
    r"|://[^\s/:@]+:[^\s/@]+@"
    rf"|(?i:{NAME})[A-Za-z0-9_-]*[\"']?\s*(?:=>|:=|[=:]|\s)\s*(?:(?i:basic|bearer|token)\s)?[\"']?[A-Za-z0-9+/_=.~!@#$%^&*-]{{8}}"
)
MIN_ENTROPY = 3.0  # bits a character
PLACEHOLDERS = re.compile(
    r"example|changeme|placeholder|your[_-]|xxxx|\*\*\*|1234567|<|\$\{|\.\.\.|dummy|sample|redacted", re.IGNORECASE
)
# Words, attributes, paths and dates.
WORDY = re.compile(r"[a-z]{8}|[A-Z]{8}|\.\w+\.|^[\w-]+(?:\.\w+)+$|^/|\d{4}-\d\d-\d\d")
CHANGE = re.compile(r"(?<=\d)[A-Za-z]|(?<=[A-Za-z])\d|(?<=[a-z])[A-Z]")


def find_private_keys(text: str) -> Iterator[Span]:
    """Private keys as PEM blocks, which go over many lines."""
    return (match.span() for match in BLOCK.finditer(text))


def find_secrets(line: str) -> Iterator[Span]:
    """Service keys, passwords in URLs, and random-looking values given to something called a key."""
    spans = [match.span() for match in SERVICE.finditer(line)]
    spans += [match.span(1) for match in IN_URL.finditer(line) if not PLACEHOLDERS.search(match[1])]
    spans += [match.span(1) for match in ASSIGNED.finditer(line) if is_random(match[1])]
    end = 0
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        if span[0] >= end:
            yield span
            end = span[1]


def is_random(value: str) -> bool:
    """True for what looks drawn at random: letters and digits mixed all along, and no words, paths or versions."""
    if len(value) < 12 or PLACEHOLDERS.search(value) or WORDY.search(value):
        return False
    if not (re.search(r"\d", value) and re.search(r"[A-Za-z]", value)):
        return False
    return len(CHANGE.findall(value)) >= 3 and entropy(value) >= MIN_ENTROPY


def entropy(value: str) -> float:
    """Bits a character, of the value's own character frequencies."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())
