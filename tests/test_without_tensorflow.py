"""Training, evaluation and generation where nothing of the extra [data] can be imported, as on TPU images."""

import os
import shutil
import subprocess
import sys

from tiny import ROOT

BLOCKED = """
import sys

BLOCKED = {  # everything of the extra [data]
    "tensorflow", "tensorflow_text", "seqio", "tensorflow_datasets", "apache_beam", "fastwarc", "resiliparse", "brotli",
    "py3langid", "fasttext", "phonenumbers",
}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked in this test")

sys.meta_path.insert(0, Block())
for name in ("tensorflow", "seqio"):
    try:
        __import__(name)
    except ImportError:
        pass
    else:
        raise SystemExit(f"{name} could be imported: the block does not work")
from pretrain.main import main
workdir = sys.argv[1]
for command in (["train"], ["evaluate"], ["generate", "--prompt=the ", "--max_tokens=4"]):
    code = main([command[0], f"--workdir={workdir}", *command[1:]])
    if code:
        raise SystemExit(f"{command[0]}: exit code {code}")
print("loaded:", sorted({"tensorflow", "seqio"} & set(sys.modules)))
"""


def test_trains_and_generates_without_tensorflow(tiny_cache, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_cache, workdir)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, workdir], capture_output=True, text=True, cwd=ROOT, env=os.environ, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert (workdir / "evaluation.json").exists()
