"""What a person at a terminal sees: messages and progress on stderr (stdout is for results).

In a run of several processes the first one speaks for all.
"""

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from pretrain.core import processes


class Forgiving:
    """A text stream to which nothing may be written for a while: a log on a full disk must not end what it tells of.

    That nobody reads it any more (`| head`) is an error as before.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._tried(self._stream.write, text) or len(text)

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, action: Any, *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except BrokenPipeError:
            raise
        except OSError:
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(message: str) -> None:
    """One line of news on stderr, above a progress bar if one is shown."""
    if processes.is_first():
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


class Progress:
    """A progress bar with rate and ETA on a terminal; elsewhere a plain line every `every` seconds.

    Args:
        total: units of work in all; None when unknown.
        label: what is being done, e.g. "train".
        unit: name of one unit, e.g. "step".
        initial: units already done, on a resumed run.
        every: seconds between plain lines.
    """

    def __init__(self, total: int | None, label: str, unit: str = "it", initial: int = 0, every: float = 10.0):
        self._bar = tqdm(
            total=total,
            desc=label,
            unit=unit,
            initial=initial,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=not sys.stderr.isatty() or not processes.is_first(),
        )
        self._total, self._label, self._unit, self._every = total, label, unit, every
        self._done = self._initial = initial
        self._started = self._spoke = time.monotonic()

    def update(self, count: int = 1, note: str = "") -> None:
        """Counts `count` units done; `note` is shown beside the bar."""
        self._done += count
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._spoke >= self._every:
            self._spoke = time.monotonic()
            say(self._line(note))

    def _line(self, note: str) -> str:
        rate = (self._done - self._initial) / max(time.monotonic() - self._started, 1e-9)
        text = f"{self._label}: {self._done:,}" + (f"/{self._total:,}" if self._total else "") + f" {self._unit}s"
        if self._total and rate > 0:
            text += f", {tqdm.format_interval((self._total - self._done) / rate)} left"
        return f"{text}, {rate:.3g} {self._unit}s/s" + (f", {note}" if note else "")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
