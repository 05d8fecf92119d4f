"""Every snippet of these pages runs, and prints what the page shows, but for numbers.

`WRITE_OUTPUTS=1 python -m pytest tests/docs/test_snippets.py` writes into the pages what the snippets print. A line
`...` in an output stands for any lines.
"""

import argparse
import json
import os
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import page_runner
import pytest
from launching import launch
from page_runner import agrees

from accmt.cli.main import _COMMANDS as COMMANDS

DOCS = Path(__file__).parent.parent.parent / "docs"
FRAGMENTS = ("hyperparameter-search", "plain-modules", "tracking", "transformers")
"""Pages of how-to with fragments; others of these tests, and those of their rooms, run what they show."""
PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for folder in ("tutorials", "how-to", "coming-from")
    for page in (DOCS / folder).glob("*.md")
    if folder != "how-to" or page.stem not in FRAGMENTS
)


NEEDED = {f"coming-from/{name}.md": name for name in ("ignite", "keras", "lightning", "transformers")}
"""Page -> the library without which it cannot be run."""


ELSEWHERE = {
    "README.md": {"docs/test_readme.py": ("python", "bash", "rule")},
    "CONTRIBUTING.md": {"docs/test_snippets.py": ("python",)},
    "benchmarks/README.md": {"docs/test_snippets.py": ("bash",)},
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
ROOT, TESTS = DOCS.parent, Path(__file__).parent.parent
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


@pytest.mark.parametrize("name", PAGES)
def test_a_page(name, tmp_path):
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        pytest.skip(f"{NEEDED[name]} is not installed")
    page = DOCS / name
    launch(Path(page_runner.__file__), tmp_path, str(page)).check()
    for language, shown, made in json.loads((tmp_path / "blocks.json").read_text()):
        if os.environ.get("WRITE_OUTPUTS") == "1" and not agrees(shown, made):
            page.write_text(page.read_text().replace(f"```{language}\n{shown}```", f"```{language}\n{made}```", 1))
        elif os.environ.get("WRITE_OUTPUTS") != "1":
            assert agrees(shown, made), f"{name} shows\n{shown}\nand it prints\n{made}"


@pytest.mark.parametrize("name", WRITTEN)
def test_every_block_is_run_or_says_why_not(name):
    """A block without a language is a drawing."""
    page, here = (ROOT / name).read_text(), name.removeprefix("docs/") in PAGES
    tested = [language for languages in ELSEWHERE.get(name, {}).values() for language in languages]
    tested += ["python", "console", "text"] if here else []
    left = [
        f"```{language}\n{text}"
        for skipped, language, text in page_runner.BLOCK.findall(page)
        if not (skipped or language in tested or (here and page_runner.FILE.match(text)))
        and name.removeprefix("docs/how-to/").removesuffix(".md") not in FRAGMENTS
    ]
    assert left == []


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
