"""A tracker in the background neither stops nor slows who calls it, and what it does not take is said."""

import threading

import pytest
import torch

from accmt.tracking.background import BackgroundTracker, Limits, MultiTracker
from accmt.tracking.tracker import NoArtifacts, Unreachable

QUICK = Limits(interval=0.0, pause=0.0)
HASTY = Limits(interval=0.0, pause=0.0, start=0.0, artifact=0.0, end=0.0, end_with_artifacts=0.0)


@pytest.fixture
def warned():
    return []


def begun(tracker, warned, limits=QUICK, **arguments):
    background = BackgroundTracker("recorder", lambda: tracker, warned.append, limits=limits, **arguments)
    background.start(may_be_late=False)
    return background


def test_everything_arrives_in_order_on_one_other_thread(recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "model").mkdir()
    tracker = begun(recorder, warned)
    tracker.log({"a": 1}, 1)
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log({"b": torch.tensor(2.5)}, 2)
    tracker.log_artifacts(str(tmp_path / "model"))
    tracker.log({"c": 3}, 3)
    tracker.close("FINISHED")
    assert recorder.calls == [
        ("log", {"a": 1.0}, 1),
        ("file", "notes.txt"),
        ("log", {"b": 2.5}, 2),
        ("folder", "model"),
        ("log", {"c": 3.0}, 3),
        ("close", "FINISHED"),
    ]
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads
    assert warned == []
    assert not any(thread.name == "tracker recorder" for thread in threading.enumerate())


def test_what_gathers_behind_a_slow_call_goes_out_together(batch_recorder, warned):
    tracker = begun(batch_recorder, warned)
    batch_recorder.free.clear()
    tracker.log({"loss": 0}, 0)
    assert batch_recorder.entered.wait(30)
    for step in range(1, 1001):
        tracker.log({"loss": step}, step)
    assert batch_recorder.calls == [], "a thousand calls came back while the first was not done"
    batch_recorder.free.set()
    tracker.close("FINISHED")
    batches = [batch for kind, batch in batch_recorder.calls if kind == "batch"]
    assert [len(batch) for batch in batches] == [1, 1000]
    assert [step for batch in batches for _, step in batch] == list(range(1001))


def test_values_of_a_step_are_one_call_for_a_tracker_without_batches(recorder, warned):
    tracker = begun(recorder, warned, Limits(interval=3600.0))
    tracker.log({"first": 1}, 1)
    assert recorder.entered.wait(30)
    tracker.log({"train_loss": 0.5}, 2)
    tracker.log({"val_loss": 0.25}, 2)
    tracker.close("FINISHED")
    assert recorder.calls[1:] == [("log", {"train_loss": 0.5, "val_loss": 0.25}, 2), ("close", "FINISHED")]


def test_a_refusal_is_one_warning_and_the_rest_is_sent(recorder, warned):
    recorder.failures = [ValueError("bad\nvalue"), None, ValueError("another")]
    tracker = begun(recorder, warned)
    for step in (1, 2, 3, 4):
        tracker.log({"loss": step, "more": step}, step)
    tracker.close("FINISHED")
    assert recorder.calls == [
        ("log", {"loss": 2.0, "more": 2.0}, 2),
        ("log", {"loss": 4.0, "more": 4.0}, 4),
        ("close", "FINISHED"),
    ]
    assert warned == [
        "recorder: the tracker takes no values: ValueError: bad value",
        "recorder: not sent: 4 values (steps 1 to 3); ValueError: another",
    ]


def test_of_a_refused_batch_only_what_is_refused_is_lost(batch_recorder, warned):
    def dislikes_three(call):
        return ValueError("no") if call[0] == "batch" and any(step == 3 for _, step in call[1]) else None

    batch_recorder.failures = [None, *[dislikes_three] * 20]
    tracker = begun(batch_recorder, warned, Limits(interval=3600.0))
    tracker.log({"loss": 0}, 0)
    assert batch_recorder.entered.wait(30)
    for step in range(1, 6):
        tracker.log({"loss": step}, step)
    tracker.close("FINISHED")
    steps = [step for kind, batch in batch_recorder.calls if kind == "batch" for _, step in batch]
    assert steps == [0, 1, 2, 4, 5]
    assert warned == [
        "recorder: the tracker takes no values: ValueError: no",
        "recorder: not sent: 1 value (step 3); ValueError: no",
    ]


def test_while_it_is_unreachable_the_same_is_tried_again(recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    recorder.failures = [Unreachable("no route")] * 3 + [None] + [Unreachable("again")] * 2
    tracker = begun(recorder, warned)
    tracker.log({"loss": 1}, 1)
    assert recorder.entered.wait(30)
    tracker.log({"loss": 2}, 2)
    recorder.free.wait(30)
    wait_for(lambda: len(recorder.calls) == 2)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("log", {"loss": 2.0}, 2), ("close", "FINISHED")]
    assert warned == ["recorder does not answer, the training goes on without: no route"]


def wait_for(condition):
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it did not come to pass")


def test_unreachable_to_the_end(recorder, warned):
    recorder.failures = [Unreachable("no route")] * 1000
    tracker = begun(recorder, warned, Limits(interval=0.0))
    for step in (1, 2, 3):
        tracker.log({"loss": step}, step)
    tracker.close("KILLED")
    assert recorder.calls == []
    assert warned == [
        "recorder does not answer, the training goes on without: no route",
        "recorder: not sent: 3 values (steps 1 to 3), the status KILLED; no route",
    ]


def test_a_tracker_that_hangs_is_left_behind(recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    recorder.free.clear()
    tracker = begun(recorder, warned, HASTY)
    tracker.log({"loss": 1}, 1)
    assert recorder.entered.wait(30)
    tracker.log({"loss": 2}, 2)
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("FINISHED")
    assert warned == [
        f"recorder: '{tmp_path / 'notes.txt'}' is not sent yet: leave it as it is while the training goes on",
        "recorder: not sent: 2 values (steps 1 to 2), 1 artifact, the status FINISHED; it did not answer in time",
    ]
    tracker.log({"loss": 3}, 3)
    assert warned[2:] == ["recorder: not sent: 1 value (step 3); it did not answer in time"]
    recorder.free.set()
    wait_for(lambda: not any(thread.name == "tracker recorder" for thread in threading.enumerate()))
    assert recorder.calls == [("log", {"loss": 1.0}, 1)], "nothing is sent behind the back of who was told otherwise"


def test_an_end_that_is_refused_is_said(recorder, warned):
    recorder.failures = [None, PermissionError("not yours")]
    tracker = begun(recorder, warned)
    tracker.log({"loss": 1}, 1)
    tracker.close("FINISHED")
    assert warned == ["recorder: not sent: the status FINISHED; PermissionError: not yours"]


def test_after_the_end_things_are_sent_at_once(recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    tracker = begun(recorder, warned)
    tracker.close("FINISHED")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log({"loss": 1}, 9)
    assert recorder.calls == [("close", "FINISHED"), ("file", "notes.txt"), ("log", {"loss": 1.0}, 9)]
    recorder.failures = [OSError("gone")]
    tracker.log_artifact(tmp_path / "notes.txt")
    assert warned == [
        f"recorder: the tracker takes no artifact '{tmp_path / 'notes.txt'}': OSError: gone",
        "recorder: not sent: 1 artifact; OSError: gone",
    ]


def test_artifacts_that_are_not_there_or_not_taken(recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    recorder.failures = [NoArtifacts("no place")] * 2
    tracker = begun(recorder, warned)
    tracker.log_artifact(tmp_path / "nots.txt")
    tracker.log_artifacts(tmp_path / "notes.txt")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("FINISHED")
    assert warned == [
        f"recorder: there is no file '{tmp_path / 'nots.txt'}' to send",
        f"recorder: there is no folder '{tmp_path / 'notes.txt'}' to send",
        f"recorder: the tracker takes no artifact '{tmp_path / 'notes.txt'}': no place",
    ]


def test_an_artifact_is_sent_when_the_call_returns(recorder, warned, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("first")
    read = []
    recorder.log_artifact = lambda path: read.append(path.read_text())
    tracker = begun(recorder, warned, Limits(interval=3600.0))
    tracker.log({"loss": 1}, 1)
    tracker.log_artifact(path)
    path.write_text("second")
    tracker.log_artifact(path)
    path.unlink()
    assert read == ["first", "second"]
    tracker.close("FINISHED")
    assert warned == []


def test_a_full_queue_loses_the_oldest(recorder, warned):
    recorder.free.clear()
    tracker = begun(recorder, warned, Limits(values=10, interval=0.0))
    tracker.log({"loss": 0}, 0)
    assert recorder.entered.wait(30)
    for step in range(1, 31):
        tracker.log({"loss": step}, step)
    recorder.free.set()
    tracker.close("FINISHED")
    assert [call[2] for call in recorder.calls if call[0] == "log"] == [0, *range(21, 31)]
    assert warned == [
        "recorder takes values more slowly than they come: the oldest are left out",
        "recorder: not sent: 20 values (steps 1 to 20); there was too much",
    ]


def test_what_is_no_number_is_left_out(recorder, warned):
    tracker = begun(recorder, warned)
    for step in (1, 2):
        tracker.log({"text": "good", "two": torch.ones(2), "loss": True, "none": None}, step)
    tracker.log({"text": "good"}, 3)
    tracker.close("FINISHED")
    assert [call for call in recorder.calls if call[0] == "log"] == [
        ("log", {"loss": 1.0}, 1),
        ("log", {"loss": 1.0}, 2),
    ]
    assert warned == [
        "recorder: 'text' is no number at step 1: it is not sent",
        "recorder: 'two' is no number at step 1: it is not sent",
        "recorder: 'none' is no number at step 1: it is not sent",
    ]


def test_a_tracker_that_refuses_to_begin(warned):
    def refuses():
        raise PermissionError("not yours")

    tracker = BackgroundTracker("recorder", refuses, warned.append, {"recorder": "former"}, QUICK)
    with pytest.raises(PermissionError, match="not yours"):
        tracker.start(may_be_late=False)
    tracker.log({"loss": 1}, 1)
    assert tracker.state() == {"recorder": "former"}
    tracker.close("FINISHED")
    assert warned == ["recorder: not sent: 1 value (step 1); PermissionError: not yours"]


def test_a_tracker_that_begins_late_is_told_everything(recorder, warned):
    may_begin = threading.Event()

    def begins_late():
        assert may_begin.wait(60)
        return recorder

    tracker = BackgroundTracker("recorder", begins_late, warned.append, {"recorder": "former"}, HASTY)
    tracker.start(may_be_late=True)
    assert warned == ["recorder does not answer yet: the training starts, and it is told later"]
    assert tracker.state() == {"recorder": "former"}
    tracker.log({"loss": 1}, 1)
    may_begin.set()
    wait_for(lambda: recorder.calls)
    assert tracker.state() == {"recorder": "run 1"}
    assert recorder.calls == [("log", {"loss": 1.0}, 1)]
    tracker.close("FINISHED")


def test_beginning_is_tried_again(recorder, warned):
    outcomes = [Unreachable("no route"), Unreachable("no route"), recorder]

    def begins():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    tracker = BackgroundTracker("recorder", begins, warned.append, limits=QUICK)
    tracker.start(may_be_late=False)
    tracker.log({"loss": 1}, 1)
    wait_for(lambda: recorder.calls)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("close", "FINISHED")]
    assert warned == ["recorder does not answer, the training goes on without: no route"]


def test_several_trackers_do_not_wait_for_one_another(recorder, batch_recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    slow, fast = begun(recorder, warned, HASTY), begun(batch_recorder, warned)
    recorder.free.clear()
    tracker = MultiTracker([slow, fast])
    for step in (1, 2):
        tracker.log({"loss": step}, step)
    assert recorder.entered.wait(30)
    wait_for(lambda: sum(len(batch) for _, batch in batch_recorder.calls) == 2)
    assert recorder.calls == []
    assert tracker.state() == {"recorder": "run 1"}
    recorder.free.set()
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log_artifacts(tmp_path)
    wait_for(lambda: len(recorder.calls) == 4)
    tracker.close("FAILED")
    assert [call for call in batch_recorder.calls if call[0] != "batch"] == [
        ("file", "notes.txt"),
        ("folder", tmp_path.name),
        ("close", "FAILED"),
    ]
