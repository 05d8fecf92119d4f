"""Runs the snippets of a page of the documentation, in order and in one folder: `python page_runner.py FOLDER PAGE`.

- `python`: runs in one program for the whole page. A first line such as `# train.py` makes it a file instead; also
  for `yaml` and `bash`.
- `console`: lines after `$ ` run in a shell. The lines below one are its output.
- `text`, after a `python` block: what the block printed.
- Modules of examples/ can be imported.
- A block after a line `<!-- not run: REASON -->` is only shown.

Writes `blocks.json`: a list of [language, shown, printed] of all blocks with an output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from operator import eq
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n+)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\b[0-9a-f]{32}\b|(?:\d[\d,.:]*\d|\d)(?:e[+-]?\d+)?(?: (?:s|bytes|[kMGT]B)\b)?")
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml|sh))\n")


class Shown(NamedTuple):
    """A block with an output: its language, its text as shown, and as it should be."""

    language: str
    shown: str
    made: str


def run(page: str) -> list[Shown]:
    """Run the blocks of a page in the current folder."""
    names = {"__name__": "__main__"}
    found, printed = [], ""
    for skipped, language, text in BLOCK.findall(page):
        if skipped:
            continue
        file = FILE.match(text)
        if language == "text":
            found.append(Shown(language, text, printed))
        elif file and language != "text":
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(file[1]).write_text(text)
        elif language == "python":
            printed = _printed(text, names)
        elif language == "console":
            found.append(Shown(language, text, _in_shell(text)))
    return found


def _printed(text: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "page.py", "exec"), names)
    return _without_folder(out.getvalue())


def _without_folder(text: str) -> str:
    return text.replace(f"{os.getcwd()}/", "")


def _in_shell(text: str) -> str:
    lines = []
    for command in re.findall(r"^\$ (.*(?:\\\n.*)*)$", text, re.MULTILINE):
        ran = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines += [f"$ {command}", *_without_folder(ran.stdout).splitlines()]
    return "".join(line.rstrip() + "\n" for line in lines)


def without_numbers(text: str) -> str:
    """The text with 0 for each number, with its unit of time or bytes, and one bar for each sparkline."""
    text = re.sub(r"[▁-█]+", "▁", _NUMBER.sub("0", text))
    return re.sub(r"[ \t]+", " ", re.sub(r" +$", "", text, flags=re.MULTILINE)).rstrip()


def agrees(shown: str, made: str) -> bool:
    """Return whether an output is as shown, but for numbers. A line `...` stands for any lines."""
    parts = [re.escape(part) for part in re.split(r"^\.\.\.$", without_numbers(shown), flags=re.MULTILINE)]
    return re.fullmatch(".*".join(parts), without_numbers(made), re.DOTALL) is not None


def with_numbers_of(made: str, shown: str) -> str:
    """Return what is shown, each line as it was made: all numbers of a page are then those of one run."""
    left, lines = iter(made.splitlines()), []
    for line in shown.splitlines():
        is_alike = partial(eq, without_numbers(line))
        lines.append(line if line == "..." else next(new for new in left if is_alike(without_numbers(new))))
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    folder, page = sys.argv[1:3]
    os.chdir(folder)
    sys.path[:0] = [folder, str(Path(page).parent.parent.parent / "examples")]
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    Path("blocks.json").write_text(json.dumps(run(Path(page).read_text())))
