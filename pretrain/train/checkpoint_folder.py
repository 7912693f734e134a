"""The checkpoints of one folder: which are complete, which are whole, and what becomes of those that are not.

`<folder>/<step>/` holds `state/` (arrays, Orbax), `manifest.json` (written last) and, for some, `pinned.json`. A
damaged one is kept for a look, out of the way: on a local disk under another name, `damaged-<step>`; in an object
store, which has no rename, marked by `set_aside.json`.
"""

import os

from pretrain.core.errors import UserError
from pretrain.core.storage import Path, is_remote, read_json, write_json
from pretrain.train.manifest import MANIFEST, STATE, Manifest, read_manifest, verify

PINNED, SET_ASIDE = "pinned.json", "set_aside.json"
_DAMAGED, _UNFINISHED = "damaged-", "unfinished-"


class CheckpointFolder:
    """Checkpoints by step. Nothing here keeps state: other processes may look at the same folder.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path) if is_remote(path) else Path(path).absolute()  # Orbax takes no relative path

    def __getitem__(self, step: int) -> Path:
        return self.path / str(step)

    def steps(self) -> list[int]:
        """Steps with a manifest, the oldest first; their files have not been looked at."""
        return [step for step in self._numbered() if (self[step] / MANIFEST).exists() and not self._is_aside(step)]

    def unfinished(self) -> list[int]:
        """Steps whose save has not come to its end."""
        return [step for step in self._numbered() if not (self[step] / MANIFEST).exists() and not self._is_aside(step)]

    def set_aside_steps(self) -> list[int]:
        """Steps that were found damaged, as far as they are still there."""
        names = [name.removeprefix(_DAMAGED).partition(".")[0] for name in self._names() if name.startswith(_DAMAGED)]
        named = {int(name) for name in names if name.isascii() and name.isdigit()}
        return sorted(named | {step for step in self._numbered() if self._is_aside(step)})

    def manifest(self, step: int) -> Manifest:
        """As `read_manifest`."""
        return read_manifest(self[step])

    def verify(self, step: int) -> Manifest:
        """As `manifest.verify`: reads and compares everything."""
        return verify(self[step])

    def set_aside(self, step: int, reason: str) -> str:
        """Takes a damaged checkpoint out of the way; returns where it is now."""
        if is_remote(self.path):
            write_json(self[step] / SET_ASIDE, {"reason": reason})
            return str(self[step])
        taken, number = set(self._names()), 0
        name = f"{_DAMAGED}{step}"
        while name in taken:
            number += 1
            name = f"{_DAMAGED}{step}.{number}"
        os.rename(self[step], self.path / name)
        return str(self.path / name)

    def leave_unfinished(self, step: int) -> None:
        """Clears away what a save left that did not come to its end.

        All arrays may be there and only the manifest missing, perhaps by another's hand: on a local disk that is kept,
        until the next of its kind, as `unfinished-<step>`. In an object store it stays where it is, and is not seen.
        """
        if is_remote(self.path):
            return
        if not (self[step] / STATE).exists():
            self[step].rmtree()
            return
        for name in self._names():
            if name.startswith(_UNFINISHED):
                (self.path / name).rmtree()
        os.rename(self[step], self.path / f"{_UNFINISHED}{step}")

    def remove(self, step: int) -> None:
        """Removes a checkpoint, its manifest first: what a crash leaves of it is not taken for one."""
        (self[step] / MANIFEST).unlink(missing_ok=True)
        self[step].rmtree(missing_ok=True)

    def remove_remains(self, step: int) -> None:
        """Removes what is left of a step that was found damaged, or was not finished."""
        for name in self._names():
            if name.partition(".")[0] in (f"{_DAMAGED}{step}", f"{_UNFINISHED}{step}"):
                (self.path / name).rmtree()
        if step not in self.steps():
            self.remove(step)

    def pin(self, step: int, reason: str) -> None:
        """Keeps a checkpoint until `unpin`, whatever the rules of retention say."""
        write_json(self[step] / PINNED, {"reason": reason})

    def unpin(self, step: int) -> None:
        """Leaves a checkpoint to the rules of retention again."""
        (self[step] / PINNED).unlink(missing_ok=True)

    def pinned(self) -> dict[int, str]:
        """The reasons of the pinned steps."""
        marks = {step: self[step] / PINNED for step in self._numbered()}
        return {step: str(read_json(mark).get("reason")) for step, mark in marks.items() if mark.exists()}

    def _is_aside(self, step: int) -> bool:
        return (self[step] / SET_ASIDE).exists()

    def _numbered(self) -> list[int]:
        names = self._names()
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)

    def _names(self) -> list[str]:
        try:
            return [each.name for each in self.path.iterdir()] if self.path.exists() else []
        except NotADirectoryError as error:
            raise UserError(f"{self.path} is a file, and should be a folder of checkpoints") from error
