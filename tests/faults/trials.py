"""A training that is started, killed, damaged and started again, and what has to hold of its folder in between.

Whether a directory is complete is found out here, from its manifest alone, and not by asking accmt.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from forks import Child, Forks

HERE = Path(__file__).parent
CHECKPOINT = re.compile(r"checkpoint-([0-9]{4,})-step-([0-9]+)")
HIDDEN = (".tmp-", ".trash-", ".old-")
_PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import trainings
trainings.train(**json.loads(sys.argv[2]))
"""


class Trial:
    """A training in a folder.

    Args:
        forks: The server that starts processes.
        folder: An empty one, for everything that belongs to the trial; `path` below it is the model_path.
        **arguments: For `trainings.train`.
    """

    def __init__(self, forks: Forks, folder: Path, **arguments: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._forks = forks
        self._arguments = arguments
        self._starts = 0
        self.folder = folder
        self.path = folder / "model"
        self.checkpoints = self.path / "checkpoints"

    def start(self, *faults: dict[str, Any], **arguments: Any) -> Child:
        """Start, or go on, in a new process. A seed other than the first one must not matter once there is something to
        go on from."""
        return self._forks.start("train", self._log(), **self._settled(faults, arguments))

    def load(self, folder: Path, *faults: dict[str, Any]) -> Child:
        """Load a saved model in a new process."""
        return self._forks.start("load", self._log(), folder=str(folder), faults=faults)

    def start_fresh(self) -> subprocess.Popen[str]:
        """The same in an interpreter of its own."""
        settled = json.dumps(self._settled((), {}))
        with self._log().open("w") as log:
            return subprocess.Popen([sys.executable, "-c", _PROGRAM, str(HERE), settled], stdout=log, stderr=log)

    def finish(self, *faults: dict[str, Any], **arguments: Any) -> Any:
        """Start, or go on, to the end, and give what it ended with."""
        child = self.start(*faults, **arguments)
        child.end_well()
        self.printed = child.printed()
        return self.ending()

    def ending(self) -> Any:
        """What the last training ended with."""
        return json.loads((self.folder / "ending.json").read_text())["outcome"]

    def operations(self) -> int:
        """How many operations on files the last training counted."""
        return int(json.loads((self.folder / "ending.json").read_text())["operations"])

    def operations_before_start(self) -> int:
        """How many of them it took until the first step, or until it went on."""
        return int(json.loads((self.folder / "ending.json").read_text())["before start"])

    def told(self) -> list[dict[str, Any]]:
        """The checkpoints that were reported as made."""
        path = self.folder / "told.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def there(self) -> list[int]:
        """The indices of the checkpoints that are there by name."""
        found = (CHECKPOINT.fullmatch(path.name) for path in _entries(self.checkpoints))
        return sorted(int(match[1]) for match in found if match)

    def left_behind(self) -> list[str]:
        """What a process that died left of something unfinished."""
        return [path.name for path in self.path.rglob(".*") if path.name.startswith(HIDDEN)]

    def check(self, keeps_all: bool = False) -> None:
        """Assert that nothing is broken, and nothing lost that was reported as there."""
        assert broken(self.path) == []
        told, there = [line["made"] for line in self.told()], self.there()
        if told:
            assert there, f"checkpoint {max(told)} was reported as made, and none is there"
            assert max(there) >= max(told), f"checkpoint {max(told)} was reported as made, and {there} are there"
        if keeps_all:
            assert set(told) <= set(there), f"checkpoints {told} were reported as made, and {there} are there"
        self._check_savings()

    def clear(self) -> None:
        shutil.rmtree(self.folder)

    def _check_savings(self) -> None:
        """A model whose saving was written down is there, or a later one of its rule."""
        saved: dict[str, int] = {}
        for line in complete_lines(self.path / "decisions.jsonl"):
            decision = json.loads(line)
            rules = [verdict["rule"] for verdict in decision["verdicts"] if verdict["outcome"] == "saved"]
            saved |= dict.fromkeys(rules, decision["step"])
        there: dict[str, int] = {}
        for file in self.path.glob("best_*/**/saving.json"):
            if file.parent.name.startswith(HIDDEN):
                continue
            entry = json.loads(file.read_text())
            there[entry["rule"]] = max(entry["step"], there.get(entry["rule"], 0))
        lost = {rule: step for rule, step in saved.items() if there.get(rule, 0) < step}
        assert not lost, f"saved by the decisions, and not there: {lost}; there are {there}"

    def _settled(self, faults: tuple[dict[str, Any], ...], arguments: dict[str, Any]) -> dict[str, Any]:
        own = {
            "folder": str(self.path),
            "told": str(self.folder / "told.jsonl"),
            "ending": str(self.folder / "ending.json"),
            "seed": 7 if self.there() else 0,
            "faults": faults,
        }
        return own | self._arguments | arguments

    def _log(self) -> Path:
        self._starts += 1
        return self.folder / f"log-{self._starts}"


def broken(model_path: Path) -> list[str]:
    """What is wrong with directories that have the name of a checkpoint or a saving; they must be complete."""
    problems = []
    for path in _entries(model_path / "checkpoints"):
        if CHECKPOINT.fullmatch(path.name):
            problems += _problems(path)
    for saving in model_path.glob("best_*"):
        shown = [path for path in _entries(saving) if not path.name.startswith(HIDDEN)]
        models = [path for path in shown if path.name.startswith("evaluation-")]
        for path in models or ([saving] if shown else []):
            problems += _problems(path)
        if (saving / "index.json").exists():
            listed = json.loads((saving / "index.json").read_text())["best_first"]
            missing = [name for name in listed if not (saving / name).is_dir()]
            problems += [f"{saving.name}: {name} is listed and missing" for name in missing]
    return problems


def _problems(folder: Path) -> list[str]:
    try:
        files = json.loads((folder / "MANIFEST.json").read_text())["files"]
    except (OSError, ValueError) as error:
        return [f"{folder.name}: {error}"]
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"MANIFEST.json"}
    problems = [f"{folder.name}: {name}" for name in there ^ set(files)]
    for name in there & set(files):
        content = (folder / name).read_bytes()
        if (len(content), hashlib.sha256(content).hexdigest()) != (files[name]["size"], files[name]["sha256"]):
            problems.append(f"{folder.name}: {name} has another content")
    return problems


def complete_lines(path: Path) -> list[str]:
    """The lines of a journal; the last one may be cut off while a process is killed."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def tree(folder: Path, but: tuple[str, ...] = (".lock",)) -> dict[str, str]:
    """Path -> what is there, for everything below a folder but some names."""
    return {
        str(path.relative_to(folder)): _described(path) for path in sorted(folder.rglob("*")) if path.name not in but
    }


def _described(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no regular file"


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
