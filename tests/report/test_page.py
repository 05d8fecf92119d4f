"""The page, as it is without a browser: complete, safe, and not too large."""

import base64
import gzip
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from accmt.report.charts import MOST_POINTS, charts_of, in_order, thinned, timeline
from accmt.report.live import write_report
from accmt.report.page import MOST_ROWS, render
from accmt.report.training import Curve, DrawnObjective, Event, RuleCard, TrainingReport, read_training
from accmt.rules import Decision, Outcome, Progress
from accmt.rules.decision import Verdict

MEGABYTE = 1_000_000


class Elements(HTMLParser):
    """The elements of a page, with the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.found, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append((self.found[-1][1].get("type"), data))


@pytest.fixture(scope="module")
def page(trained):
    return render([read_training(trained)])


def digest(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_its_policy_allows_its_two_scripts_only(page):
    elements = Elements(page)
    [policy] = [given["content"] for tag, given in elements.found if given.get("http-equiv")]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    [own] = [text for kind, text in elements.scripts if kind is None]
    [packed] = [text for kind, text in elements.scripts if kind == "application/octet-stream"]
    library = gzip.decompress(base64.b64decode(packed)).decode()
    assert "plotly.js" in library[:100]
    assert f"script-src 'sha256-{digest(own)}' 'sha256-{digest(library)}';" in policy


def test_nothing_in_it_is_loaded_from_elsewhere(page, hostile):
    for text in (page, render([read_training(hostile)])):
        for tag, given in Elements(text).found:
            assert tag not in ("img", "link", "iframe", "object", "embed", "base", "form"), given
            assert not {"src", "href", "action"}.intersection(given), (tag, given)
            assert not [name for name in given if name.startswith("on")], (tag, given)
    assert len(page) < 3 * MEGABYTE


def test_it_can_be_read_without_scripts(page, trained):
    training = read_training(trained)
    for card in training.cards:
        assert f"<h3>{card.name}</h3>" in page
    for reason in {verdict.reason for card in training.cards for _, verdict in card.verdicts}:
        assert f"<td>{reason}\n" in page.replace("&#39;", "'")
    assert page.count("<tr><td class=") == 3 * 8 + 1 + len([one for one in training.events if one.kind != "evaluation"])
    assert all(given.get("scope") for tag, given in Elements(page).found if tag == "th")
    assert re.search("valid_loss and train_loss: dev from .* to .*, between", page)


def test_hostile_texts_are_texts(hostile):
    page = render([read_training(hostile)])
    elements = Elements(page)
    assert (
        len([one for one in elements.found if one[0] == "script"])
        == 2 + len(list(charts_of([read_training(hostile)]))) + 1
    )
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]", page)
    assert "49" not in re.sub(r"[^{}\d]", "", "".join(given.get("aria-label") or "" for _, given in elements.found))
    for kind, text in elements.scripts:
        if kind == "application/json":
            figure = json.loads(text)
            assert "</script" not in text
            names = [str(trace.get(key)) for trace in figure["data"] for key in ("name", "text")]
            assert not [name for name in names if "<script" in name or "<img" in name or len(name) > 5000]
    assert len(page) < 3 * MEGABYTE


def test_several_trainings_differ_first(trained, tmp_path):
    one = read_training(trained)
    other = TrainingReport("other", "", "Interrupted", one.cards[:1], one.curves, settings={**one.settings, "lr": 3})
    page = render([one, other])
    head = re.search("<thead><tr>(.*?)</tr>", page, re.DOTALL)[1]
    assert re.findall('class="sort">(.*?)<', head)[:4] == [
        "run",
        "lr",
        "best_valid_loss@dev",
        "best_valid_loss@dev: reached",
    ]
    rows = re.findall("<tr><td><label.*?</tr>", page, re.DOTALL)
    assert "<td>3</td>" in rows[1]
    assert f"<td>{one.cards[0].values[0]:.6g}</td><td>step 40, after" in rows[0]
    charts = list(charts_of([one, other]))
    assert [chart.title for chart in charts][:2] == ["valid_loss and train_loss", "error"]
    assert {trace["meta"]["run"] for trace in charts[0].data} == {0, 1}


def test_shades_and_incumbents(trained):
    training = read_training(trained)
    losses, errors = list(charts_of([training]))[:2]
    assert [(one["x0"], one["x1"]) for one in errors.layout["shapes"]] == [(0, 15), (40, pytest.approx(42.4))]
    assert [one["x0"] for one in losses.layout["shapes"]] == [40]
    [step_line] = [trace for trace in losses.data if trace.get("line", {}).get("shape") == "hv"]
    assert step_line["y"][-1] == pytest.approx(training.cards[0].values[0])
    rows = timeline(training).layout["yaxis"]["ticktext"]
    assert (rows[0], rows[4:]) == ("evaluation", ["checkpoint", "resumed", "stop", "end"])
    assert set(rows[1:4]) == {"best_valid_loss@dev", "best_error", "best_error@dev/error@…"}


def test_rules_with_one_beginning_have_rows_of_their_own():
    names = ["best_accuracy@validation_a", "best_accuracy@validation_b", "checkpoint"]
    events = (*(Event(5, "saved", name, rule=name) for name in names), Event(5, "checkpoint", "", 1.0))
    chart = timeline(TrainingReport("", "", "", events=events, end=5))
    assert [trace["y"] for trace in chart.data] == [[0], [1], [2], [3]]
    assert [trace["text"] for trace in chart.data][-1] == ["step 5<br>checkpoint"]


def test_what_happened_is_told_in_its_order():
    kinds = [("end", 9.0, 10), ("stop", None, 10), ("resumed", 5.0, 4), ("checkpoint", 3.0, 4), ("saved", None, 4)]
    events = [Event(step, kind, "", time) for kind, time, step in kinds]
    assert [event.kind for event in in_order(events)] == ["saved", "checkpoint", "resumed", "stop", "end"]


def test_the_course_of_many_evaluations_is_drawn():
    verdicts = tuple(
        (Progress(n, n, 0, n), Verdict("best_a", (math.sin(n),), None, Outcome.SAVED, "")) for n in range(1, 2001)
    )
    card = RuleCard("best_a", "", (DrawnObjective("a", "a"),), verdicts, None, (), "", "")
    page = render([TrainingReport("long", "", "", (card,))])
    for path in re.findall('<path class="[a-z]+" d="(.*?)"/>', page):
        assert re.fullmatch(r"(?:[ML]?[\d.]+ [\d.]+(?:h0)?)+", path)
        assert len(path) > 1000


def test_thirty_trainings_make_a_page_of_modest_size():
    steps = tuple(range(1, 3001))
    verdicts = tuple((Progress(n, n, 0, n), Verdict("a", (0.5,), None, Outcome.SAVED, "better" * 20)) for n in steps)
    card = RuleCard("a", "", (DrawnObjective("a", "a"),), verdicts, None, (), "", "")
    curves = tuple(Curve(f"m{n}", "", steps, tuple(map(math.sin, steps))) for n in range(20))
    page = render([TrainingReport(f"{number}", "", "", (card,), curves, end=3000) for number in range(30)])
    assert len(page) < 6 * MEGABYTE


def test_thinned_lines_keep_the_ends_and_the_extremes():
    values = [math.sin(step / 50) + (step == 777) - 2 * (step == 4321) for step in range(10_000)]
    values[100:200] = [math.nan] * 100
    steps, kept = thinned(range(10_000), values)
    assert len(steps) <= MOST_POINTS + 2
    assert (steps[0], steps[-1]) == (0, 9999)
    numbers = [value for value in values if math.isfinite(value)]
    assert (min(numbers), max(numbers)) == (min(v for v in kept if v == v), max(v for v in kept if v == v))
    assert steps == sorted(steps)
    assert thinned([1, 2], [0.5, 0.25]) == ([1, 2], [0.5, 0.25])


def test_ten_thousand_evaluations_of_twenty_values_make_a_page_of_modest_size():
    steps, verdicts, decisions = tuple(range(10_000)), [], []
    for step in steps:
        outcome = Outcome.SAVED if step % 50 == 0 else Outcome.NOT_BETTER
        verdicts.append(Verdict("best_a", (0.5,), None, outcome, f"0.5 is number {step}"))
        decisions.append(Decision(Progress(step, 0, step, step), (verdicts[-1],)))
    curves = tuple(
        Curve(f"metric {n // 4}", f"data {n}", steps, tuple(math.sin(step + n) for step in steps)) for n in range(20)
    )
    page = render([TrainingReport("large", "", "", curves=curves, decisions=tuple(decisions), end=10_000)])
    assert len(page) < 6 * MEGABYTE
    assert f"The table has {MOST_ROWS:,} of 10,000 decisions" in page
    assert "0.5 is number 0\n" in page
    assert "0.5 is number 9999\n" in page
    assert "0.5 is number 1\n" not in page


def test_nothing_evaluated_yet(tmp_path):
    (tmp_path / "history.jsonl").write_text("")
    page = write_report([read_training(tmp_path)], tmp_path / "report.html").path.read_text()
    assert "At step 0: it is still running, or its process was killed." in page
