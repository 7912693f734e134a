"""A small curation in a process of its own, to be killed."""

import os
import pathlib
import subprocess
import sys
import textwrap

SCRIPT = """
import sys
from pretrain.curate import engine, recipe
engine.READ_TASK_FILES = 1
if __name__ == "__main__":
    recipe.curate(recipe.Recipe(input="corpus", shards=6), sys.argv[1], workers=int(sys.argv[2]))
"""


def start_run(folder: pathlib.Path, output: str, workers: int = 2) -> subprocess.Popen:
    """Curates `folder`/corpus into `folder`/`output`, a task for each file."""
    script = folder / "killed_run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, str(script), output, str(workers)]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE)
