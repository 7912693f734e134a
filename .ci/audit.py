"""What an environment is made of: exact versions, and a software bill of materials (CycloneDX 1.6, JSON).

    python .ci/audit.py PYTHON OUTPUT        # `make audit` does it for .venv, into build/audit

Run by an interpreter that has cyclonedx-bom. Nothing is asked of a network. Exit code 1: packages that contradict each
other, a dependency of setup.py that is not there, or versions other than those in .ci/constraints.txt.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PINS = ROOT / ".ci" / "constraints.txt"
HEADER = "# Versions that the tests passed with: pip install -c .ci/constraints.txt -e '.[data,interop,dev]'\n"


def canonical(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(bill: dict) -> dict[str, str]:
    """name -> version of every package in a bill, without this project."""
    found = {canonical(component["name"]): component["version"] for component in bill["components"]}
    return dict(sorted((name, version) for name, version in found.items() if name != "pretrain"))


def read_pins(text: str) -> dict[str, str]:
    """name -> version of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==") for line in lines if line)


def wanted(setup: str) -> set[str]:
    """Names of the dependencies that setup.py always installs."""
    core = setup[setup.index("CORE = [") : setup.index("]\nDATA")]
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in re.findall(r'^    "([^"]+)"', core, re.M)}


def differences(pins: dict[str, str], found: dict[str, str]) -> list[str]:
    """One line for each package whose version is not the pinned one; pinned ones that are not there do not count."""
    return [f"{n} {v}, pinned {pins.get(n, 'nowhere')}" for n, v in found.items() if pins.get(n) != v]


def main(python: str, output: pathlib.Path) -> int:
    output.mkdir(parents=True, exist_ok=True)
    file = output / "sbom.json"
    tool = pathlib.Path(sys.executable).with_name("cyclonedx-py")
    subprocess.run([tool, "environment", "--output-reproducible", "-o", file, python], check=True)
    bill = json.loads(file.read_text())
    found = versions(bill)
    (output / "constraints.txt").write_text(HEADER + "".join(f"{n}=={v}\n" for n, v in found.items()))
    problems = [f"missing: {name}" for name in sorted(wanted((ROOT / "setup.py").read_text()) - found.keys())]
    problems += differences(read_pins(PINS.read_text()), found)
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    problems += [] if checked.returncode == 0 else checked.stdout.splitlines()
    unlicensed = [component["name"] for component in bill["components"] if not component.get("licenses")]
    print(f"{file}: {len(found)} packages; without a declared licence: {', '.join(unlicensed) or 'none'}")
    print("\n".join(problems) or "all versions are those of .ci/constraints.txt, and fit each other")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], pathlib.Path(sys.argv[2])))
