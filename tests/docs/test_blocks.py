"""Every block and every command in the documentation is run by a test, or says why not."""

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

import page_runner
import pytest

from accmt.cli.main import _COMMANDS as COMMANDS

ROOT, TESTS = Path(__file__).parents[2], Path(__file__).parents[1]
DOCS = ROOT / "docs"
RUN_WHOLE = ("docs/tutorials/", "docs/how-to/", "docs/coming-from/")
"""Folders of the pages that test_snippets.py runs from top to bottom."""
ELSEWHERE = {
    "README.md": {"docs/test_readme.py": ("python", "bash", "rule")},
    "CONTRIBUTING.md": {"docs/test_blocks.py": ("python",)},
    "benchmarks/README.md": {"docs/test_blocks.py": ("bash",)},
    "grammar/README.md": {"rules/test_readme.py": ("python", "rule", "condition", "cadence", "mistake", "text")},
    "docs/gallery.md": {"examples/test_gallery.py": ("console",)},
    "docs/explanation/beyond-noise.md": {"docs/test_noise_page.py": ("python", "rule")},
    "docs/how-to/integrations-transformers.md": {"docs/test_integrations_transformers_page.py": ("pycon",)},
    "docs/reference/checkpoints.md": {"docs/test_checkpoints_page.py": ("python",)},
    "docs/reference/command-line.md": {
        "docs/test_command_line.py": ("yaml", "csv", "console"),
        "cli/test_checkpoints.py": ("text",),
        "cli/test_launch.py": ("bash",),
    },
    "docs/reference/rules.md": {"docs/test_rules_page.py": ("python", "rule", "pycon")},
}
"""Page -> the tests besides this one that run its blocks, and compare what they print -> languages of these blocks."""
WRITTEN = [
    *sorted(page.relative_to(ROOT).as_posix() for page in DOCS.rglob("*.md")),
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "llms.txt"),
    *("grammar/README.md", "benchmarks/README.md"),
]
CALLED = re.compile(r"^\$ (accmt .*?|python benchmarks/.*?)(?: +#.*| \|.*|; .*)?$|`(accmt [a-z]+ [^`]+)`", re.MULTILINE)


def _calls(page):
    """Commands in a page, in blocks and in its text."""
    text = re.sub(r"```bash\n.*?```", lambda block: re.sub("^", "$ ", block[0], flags=re.M), page, flags=re.DOTALL)
    return ["".join(call) for call in CALLED.findall(text)]


CALLS = sorted({(name, call) for name in WRITTEN if "CHANGE" not in name for call in _calls((ROOT / name).read_text())})


@pytest.mark.parametrize("name", WRITTEN)
def test_every_block_is_run_or_says_why_not(name):
    """A block without a language is a drawing."""
    page, here = (ROOT / name).read_text(), name.startswith(RUN_WHOLE)
    tested = [language for languages in ELSEWHERE.get(name, {}).values() for language in languages]
    tested += ["python", "console", "text"] if here else []
    left = [
        f"```{language}\n{text}"
        for skipped, language, text in page_runner.BLOCK.findall(page)
        if not (skipped or language in tested or (here and page_runner.FILE.match(text)))
    ]
    assert left == []
    fences = re.findall(r"^[ \t>]*(?:```|~~~)", page, re.MULTILINE)
    seen = re.findall(
        r"^```(?:\w*|\{toctree\}|\{include\}[^\n]*|\{eval-rst\})\n.*?^```$", page, re.MULTILINE | re.DOTALL
    )
    assert len(fences) == 2 * len(seen), "a block that no test finds"


@pytest.mark.parametrize(("name", "test"), [(name, test) for name in ELSEWHERE for test in ELSEWHERE[name]])
def test_the_other_tests_read_their_pages(name, test):
    assert f'"{Path(name).name}"' in (TESTS / test).read_text()


@pytest.mark.parametrize(("name", "command"), CALLS)
def test_commands_are_as_shown(name, command):
    """Also those that are not run: the command exists and has these options."""
    program, *arguments = shlex.split(command)
    if program == "python":
        text = (ROOT / arguments[0]).read_text()
        assert [option for option in arguments if option[:2] == "--" and f'"{option}"' not in text] == []
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_module(f"accmt.cli.{COMMANDS[arguments[0]][0]}").add_arguments(parser)
    parser.parse_args(arguments[1:])


def test_the_example_of_contributing(tmp_path):
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    exec(example, {"SCRIPT": "import os, sys; open(f'{sys.argv[1]}/{os.environ[\"RANK\"]}', 'w')", "folder": tmp_path})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    ("page", "entry"),
    [("CONTRIBUTING.md", r"^  (\S+(?:, \S+)*)  "), ("docs/explanation/architecture.md", r"^.{20} +(\w+/\w+) ")],
)
def test_the_files_of_a_drawing_exist(page, entry):
    drawing = re.search(r"\n```\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]
    named = [name for names in re.findall(entry, drawing, re.MULTILINE) for name in names.split(", ")]
    assert len(named) > 8
    assert [name for name in named if not [*(ROOT / "accmt").glob(f"{name}*")]] == []
