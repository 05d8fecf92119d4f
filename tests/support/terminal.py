"""A bash in a pseudo terminal: what a user types, and what is then to be read there."""

import os
import re
import sys
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pexpect

PROMPT = "here> "


class Terminal:
    """A shell in a folder that contains the package; `python` and `accmt` are those of the tests."""

    def __init__(self, folder):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "PYTHONPATH": str(folder), "PS1": PROMPT, "TERM": "xterm", "CUDA_VISIBLE_DEVICES": ""}
        options = ["--norc", "--noprofile", "--noediting", "-i"]
        self._bash = pexpect.spawn("bash", options, 120, cwd=folder, env=os.environ | own, encoding="utf-8")
        self._bash.setwinsize(50, 240)
        self._bash.expect_exact(PROMPT)

    def close(self):
        """Hang up, which ends what runs there."""
        self._bash.close(force=True)

    def start(self, line, *awaited):
        """Type a line; return once these texts were to be read, one after the other."""
        self._bash.sendline(line)
        for text in ("\r\n", *awaited):  # the end of the line that was typed
            self._bash.expect_exact(text)

    def press(self, key):
        """Press Ctrl and a key; return what is to be read from the last awaited text to the next prompt."""
        self._bash.sendcontrol(key)
        return self._rest()

    def type(self, line):
        """Type a line; return what is to be read up to the next prompt."""
        self.start(line)
        return self._rest()

    def follow(self, session):
        """Type what follows each "$ "; the lines below it, in which `...` is any text, are all that is to be read."""
        for typed, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
            read = self.type(typed)
            assert OutputChecker().check_output(expected, read, ELLIPSIS), f"$ {typed}\n{read}\nexpected\n{expected}"

    def _rest(self):
        self._bash.expect_exact(PROMPT)
        lines = re.sub(r"\x1b\[[0-9;?]*[hlm]", "", self._bash.before).split("\r\n")
        return "\n".join(re.split(r"\r|\x1b\[2?K", line)[-1].rstrip() for line in lines)  # what was not overwritten
