"""Every snippet of these pages runs, and prints what the page shows, but for numbers.

`WRITE_OUTPUTS=1 python -m pytest tests/docs/test_snippets.py` writes into the pages what the snippets print. A line
`...` in an output stands for any lines.
"""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import page_runner
import pytest
from launching import launch
from page_runner import agrees, with_numbers_of

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for folder in ("tutorials", "how-to", "coming-from")
    for page in (DOCS / folder).glob("*.md")
)


NEEDED = {f"coming-from/{name}.md": name for name in ("ignite", "keras", "lightning", "transformers")} | {
    "how-to/hyperparameter-search.md": "optuna",
    "how-to/plain-modules.md": "pandas",
    "how-to/tracking.md": "mlflow",
    "how-to/transformers.md": "transformers",
}
"""Page -> the library without which it cannot be run."""


@pytest.mark.parametrize("name", PAGES)
def test_a_page(name, tmp_path):
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        pytest.skip(f"{NEEDED[name]} is not installed")
    page = DOCS / name
    launch(Path(page_runner.__file__), tmp_path, str(page)).check()
    for language, shown, made in json.loads((tmp_path / "blocks.json").read_text()):
        if os.environ.get("WRITE_OUTPUTS") == "1":
            new = with_numbers_of(made, shown) if agrees(shown, made) else made
            page.write_text(page.read_text().replace(f"```{language}\n{shown}```", f"```{language}\n{new}```", 1))
        else:
            assert agrees(shown, made), f"{name} shows\n{shown}\nand it prints\n{made}"
