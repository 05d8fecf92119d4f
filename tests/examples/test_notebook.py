"""The example notebooks, run by a kernel of this environment; one is interrupted, resumed and looked at."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
from browsing import chromium
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell
from PIL import Image

pytestmark = pytest.mark.xdist_group("notebook")

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "quickstart.ipynb"
INTERRUPTED = """
import os, pathlib, time
from accmt import Callback

class Waits(Callback):
    def on_after_training_step(self):
        if self.state.global_step == 25:
            pathlib.Path("waits").write_text(str(os.getpid()))
            while True:
                time.sleep(0.01)

def train_two_epochs(**arguments):
    trainer = Trainer({**hps, "epochs": 2}, "runs/two", metrics=accuracy, dataloader_num_workers=0, **arguments)
    return trainer.fit(Digits(), train, {"dev": dev, "<script>document.title = 'injected'</script>": test})

train_two_epochs(callback=Waits())
"""


def interrupt(pid_file, over):
    """Interrupt the kernel as a notebook does, once a cell has written its process."""
    while not over.is_set():
        if pid_file.is_file() and (pid := pid_file.read_text()):
            return os.kill(int(pid), signal.SIGINT)
        time.sleep(0.05)


def execute(notebook, folder):
    """Run all cells in a folder, which is also the one place for kernels and settings of Jupyter."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(place, str(folder / place))
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The executed example with two more cells, in which a training is interrupted and resumed."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(EXAMPLE, 4)
    stopped = new_code_cell(INTERRUPTED, metadata={"tags": ["raises-exception"]})
    notebook.cells += [stopped, new_code_cell("train_two_epochs()")]
    over = threading.Event()
    thread = threading.Thread(target=interrupt, args=(folder / "waits", over))
    thread.start()
    try:
        return execute(notebook, folder)
    finally:
        over.set()
        thread.join()


def outputs_of(notebook, source, kind):
    """The outputs of one kind of the only cell that starts so."""
    (cell,) = (cell for cell in notebook.cells if cell.source.strip().startswith(source))
    return [output for output in cell.outputs if output.output_type == kind]


def text_of(notebook, source):
    return "".join(output.text for output in outputs_of(notebook, source, "stream") if output.name == "stdout")


@pytest.mark.parametrize("name", ["quickstart", "several_sets"])
def test_an_example_is_published_without_outputs(name):
    cells = [cell for cell in nbformat.read(EXAMPLES / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert not [cell for cell in cells if cell.outputs or cell.execution_count]


def test_progress_is_one_output_that_was_updated(notebook):
    (bar,) = outputs_of(notebook, "module = Digits()", "display_data")
    assert bar.data["text/plain"].startswith("epoch 5/5  95/95  loss 0.")
    assert '<progress value="95" max="95">' in bar.data["text/html"]
    text = text_of(notebook, "module = Digits()")
    assert re.search(r"^evaluation 5 at step 95  dev: valid_loss", text, re.MULTILINE)
    assert "\r" not in text
    assert "19/95" not in text
    assert set(re.findall(r"\x1b\[[0-9;?]*([a-zA-Z])", text)) <= {"m"}  # colours, and nothing that moves the cursor


@pytest.mark.parametrize(
    ("source", "shown", "cells"),
    [
        (
            "set_seed(0)",
            "Trainer('runs/notebook', rules: best_accuracy@dev, step 0)",
            "nothing saved yet",
        ),
        ("history", "TrainingHistory(5 evaluations, 5 epochs)", "valid_loss@dev"),
        ("trainer.decisions", "Decisions(5, the last at step 95)", "is the first, saved"),
        (
            "saving = ",
            "SavedModel(rule='best_accuracy@dev'",
            "runs/notebook/best_accuracy@dev",
        ),
        ("module", "Digits(Sequential, 4,810 parameters)", "model.0"),
    ],
)
def test_objects_are_tables(notebook, source, shown, cells):
    found = [cell for cell in notebook.cells if cell.source == source or cell.source.startswith(f"{source}")]
    (table,) = (
        output
        for cell in found
        for output in cell.outputs
        if output.output_type == "execute_result" and "text/html" in output.data and shown in output.data["text/plain"]
    )
    assert "<table" in table.data["text/html"]
    assert cells in table.data["text/html"]


def test_the_figure_is_shown_once(notebook):
    (figure,) = outputs_of(notebook, "history.plot()", "execute_result")
    assert figure.data["image/png"]
    assert not outputs_of(notebook, "history.plot()", "display_data")


def test_an_interrupt_leaves_a_sentence_and_a_training_that_resumes(notebook):
    (error,) = outputs_of(notebook, "import os", "error")
    assert (error.ename, error.traceback) == ("KeyboardInterrupt", ["KeyboardInterrupt"])
    sentence = "interrupted at step 25; run again to continue from step 19 (6 steps are repeated)"
    assert text_of(notebook, "import os").splitlines()[-1] == sentence
    assert len(outputs_of(notebook, "import os", "display_data")) == 1
    resumed = outputs_of(notebook, "train_two_epochs()", "execute_result")
    assert [output.data["text/plain"] for output in resumed] == ["TrainingHistory(2 evaluations, 2 epochs)"]
    assert "evaluation 1 " not in text_of(notebook, "train_two_epochs()")


def test_several_sets_and_a_report_in_a_frame(tmp_path):
    ran = execute(nbformat.read(EXAMPLES / "several_sets.ipynb", 4), tmp_path)
    (table,) = outputs_of(ran, "history.to_pandas()", "execute_result")
    assert re.match(r"dataset +measured +missing +noisy\n", table.data["text/plain"])
    assert "held out" in text_of(ran, "set_seed(0)")
    (report,) = outputs_of(ran, "trainer.report()", "execute_result")
    assert "<iframe sandbox" in report.data["text/html"]
    page = (tmp_path / "runs/several_sets/report.html").read_text()
    assert all(rule in page for rule in ("best_worst(accuracy)", "best_accuracy@noisy/accuracy@measured"))
    (saving,) = outputs_of(ran, "saving = ", "execute_result")
    assert saving.data["text/plain"].startswith("SavedModel(rule='best_worst(accuracy)'")


def test_no_other_cell_fails(notebook):
    failed = [
        cell.source for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"
    ]
    assert failed == [INTERRUPTED]


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "user") as started:
        started.set_window_size(1200, 4500)
        yield started


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(notebook, browser, tmp_path, theme):
    """Tables take the colours of the page, nothing is wider than it, and no text becomes a script."""
    exporter = HTMLExporter(theme=theme, require_js_url="", mathjax_url="", mermaid_js_url="")
    page = tmp_path / "notebook.html"
    page.write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8")
    browser.get(page.as_uri())
    assert browser.title == "Notebook"
    assert len(browser.find_elements("tag name", "table")) == 6
    assert len(browser.find_elements("tag name", "progress")) == 3
    colour = "return getComputedStyle(document.querySelector('td')).color"
    red, green, blue = map(int, re.findall(r"\d+", browser.execute_script(colour))[:3])
    assert (red + green + blue > 3 * 128) == (theme == "dark")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    sizes = (
        "return [...document.querySelectorAll('table, progress, img')].map(one => one.getBoundingClientRect().height)"
    )
    assert min(browser.execute_script(sizes)) > 5
    assert browser.execute_script("return [...document.images].every(one => one.naturalWidth > 300)")
    picture = tmp_path / f"{theme}.png"
    browser.save_screenshot(str(picture))
    with Image.open(picture) as image:
        brightness = image.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert (brightness < 128) == (theme == "dark")
        assert len(image.convert("L").getcolors()) > 50
    assert browser.get_log("browser") == []
