"""Trackers in the background neither stop nor slow who calls them; what they are not sent is said, and waits."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import recipient_of
from waiting import waiting_in

from accmt.tracking import outbox as outbox_module
from accmt.tracking.background import BackgroundTrackers
from accmt.tracking.outbox import FOLDER, Outbox
from accmt.tracking.records import Artifact, RunEnd, SentPosition
from accmt.tracking.sending import Sender, SendingLimits
from accmt.tracking.tracker import Logged, NoArtifacts, Resumption, Unreachable

QUICK = SendingLimits(interval=0.01, pause=0.01)
SLOW = SendingLimits(interval=0.01)
GATHERING = SendingLimits(interval=3600.0)
HASTY = SendingLimits(0.01, start=0.0, artifact=0.0, end=0.0, end_with_artifacts=0.0, end_when_killed=0.0)
DOWN = Unreachable("no route")


@pytest.fixture
def warned():
    return []


@pytest.fixture
def model(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def begun(warned, model):
    """Trackers -> all of them in the background; they are called "recorder", "recorder2" and so on."""

    def begin(*trackers, limits=QUICK, resumption=None, run=None, may_be_late=False):
        outbox, senders = Outbox(model), []
        for number, tracker in enumerate(trackers, 1):
            name = "recorder" if number == 1 else f"recorder{number}"
            reader = outbox.read_by(SentPosition(recipient_of(name), run=run), resumption)
            limit = limits[number - 1] if isinstance(limits, list) else limits
            make = tracker if callable(tracker) else lambda tracker=tracker: tracker
            senders.append(Sender(name, outbox, reader, make, warned.append, limit))
        for sender in senders:
            if (error := sender.start(may_be_late=may_be_late)) is not None:
                raise error
        later = {sender.name: "accmt sync X" for sender in senders}
        return BackgroundTrackers(model, outbox, senders, warned.append, later)

    return begin


@pytest.fixture
def waiting(model):
    """What waits on the disk, in words; None if there is no outbox any more."""

    def count(tracker="recorder"):
        return waiting_in(model).get(tracker, "") if (model / FOLDER).exists() else None

    return count


def wait_for(condition):
    pause = threading.Event()
    for _ in range(30_000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it did not come to pass")


def left_by_its_thread():
    """Wait for a call that was under way when the tracker was abandoned."""
    for thread in threading.enumerate():
        if thread.name.startswith("tracker "):
            thread.join(300)


def steps_of(batch_recorder):
    return [step for kind, batch in batch_recorder.calls if kind == "batch" for _, step in batch]


def test_everything_arrives_in_order_on_one_other_thread(begun, recorder, warned, tmp_path, model):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "weights").mkdir()
    tracker = begun(recorder)
    tracker.log({"a": 1}, 1)
    assert (model / FOLDER / "0001.jsonl").read_text().endswith(f', "time": {tracker._latest}}}\n')
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log({"b": torch.tensor(2.5)}, torch.tensor(2))
    tracker.log_artifacts(str(tmp_path / "weights"))
    tracker.log({"c": 3}, 3)
    tracker.close("FINISHED")
    assert recorder.calls == [
        ("log", {"a": 1.0}, 1),
        ("file", "notes.txt"),
        ("log", {"b": 2.5}, 2),
        ("folder", "weights"),
        ("log", {"c": 3.0}, 3),
        ("close", "FINISHED"),
    ]
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads
    assert warned == []
    assert not any(thread.name == "tracker recorder" for thread in threading.enumerate())
    assert not list(model.iterdir()), "nothing is left on the disk when all was sent"


def test_what_gathers_behind_a_slow_call_goes_out_together(begun, batch_recorder, warned):
    tracker = begun(batch_recorder)
    batch_recorder.free.clear()
    tracker.log({"loss": 0}, 0)
    assert batch_recorder.entered.wait(300)
    for step in range(1, 1501):
        tracker.log({"loss": step}, step)
    assert batch_recorder.calls == [], "all calls came back while the first was not done"
    batch_recorder.free.set()
    tracker.close("FINISHED")
    assert steps_of(batch_recorder) == list(range(1501))
    assert [len(batch) for kind, batch in batch_recorder.calls if kind == "batch"][:2] == [1, 1000]


def test_values_of_a_step_are_one_call_for_a_tracker_without_batches(begun, recorder):
    recorder.free.clear()
    tracker = begun(recorder, limits=GATHERING)
    tracker.log({"first": 0}, 0)
    tracker._senders[0].wake()
    assert recorder.entered.wait(300)
    for values, step in (({"a": 1}, 1), ({"b": 2}, 1), ({"a": 3}, 1), ({"c": 4}, 2)):
        tracker.log(values, step)
    recorder.free.set()
    tracker.close("FINISHED")
    logged = [("log", {"a": 1.0, "b": 2.0}, 1), ("log", {"a": 3.0}, 1), ("log", {"c": 4.0}, 2)]
    assert recorder.calls[1:] == [*logged, ("close", "FINISHED")]


def test_a_refusal_is_one_warning_and_the_rest_is_sent(begun, recorder, batch_recorder, warned):
    """Also of a batch: only the refused entry of it is lost."""

    def dislikes_even(call):
        return ValueError(f"bad\n{call[0]}") if call[0] == "batch" and any(s % 2 == 0 for _, s in call[1]) else None

    recorder.failures = [ValueError("bad\nvalue"), None, ValueError("another"), None, PermissionError("not yours")]
    batch_recorder.failing = dislikes_even
    tracker = begun(recorder, batch_recorder, limits=GATHERING)
    for step in (1, 2, 3, 4):
        tracker.log({"loss": step, "more": step}, step)
    tracker.close("FINISHED")
    assert [call[2] for call in recorder.calls] == [2, 4]
    assert steps_of(batch_recorder) == [1, 3]
    assert batch_recorder.calls[-1] == ("close", "FINISHED")
    assert sorted(warned) == [
        "recorder2: not sent: 4 values (steps 2 to 4); ValueError: bad batch",
        "recorder2: the tracker rejects the values: ValueError: bad batch",
        "recorder: not sent: 4 values (steps 1 to 3), the status FINISHED; PermissionError: not yours",
        "recorder: the tracker rejects the values: ValueError: bad value",
    ]


def test_while_it_is_unreachable_the_same_is_tried_again(begun, recorder, warned):
    recorder.failures = [DOWN, DOWN, None, DOWN]
    outcomes = [DOWN, DOWN, recorder]

    def begins():
        outcome = outcomes.pop(0)
        if outcome is DOWN:
            raise outcome
        return outcome

    tracker = begun(begins)
    tracker.log({"loss": 1}, 1)
    wait_for(lambda: recorder.calls)
    tracker.log({"loss": 2}, 2)
    wait_for(lambda: len(recorder.calls) == 2)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("log", {"loss": 2.0}, 2), ("close", "FINISHED")]
    assert warned == ["recorder does not answer, the training continues without it: no route"]


def test_unreachable_to_the_end(begun, recorder, warned, waiting):
    recorder.failing = DOWN
    tracker = begun(recorder, limits=SLOW)
    for step in (1, 2, 3):
        tracker.log({"loss": step}, step)
    tracker.close("KILLED")
    assert warned == [
        "recorder does not answer, the training continues without it: no route",
        "recorder: not sent yet: 3 values (steps 1 to 3), the status KILLED; no route; later: accmt sync X",
    ]
    assert waiting() == "3 values (steps 1 to 3), the status KILLED"


def test_an_attempt_that_began_before_the_end_is_not_the_last(begun, recorder, waiting):
    recorder.failures = [DOWN]
    recorder.free.clear()
    tracker = begun(recorder, limits=SLOW)
    tracker.log({"loss": 1}, 1)
    assert recorder.entered.wait(300)
    closing = threading.Thread(target=tracker.close, args=("FINISHED",))
    closing.start()
    wait_for(tracker._senders[0]._closing.is_set)
    recorder.free.set()
    closing.join()
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("close", "FINISHED")]
    assert waiting() is None


def test_a_tracker_that_hangs_is_left_behind(begun, recorder, warned, waiting, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    recorder.free.clear()
    tracker = begun(recorder, limits=HASTY)
    tracker.log({"loss": 1}, 1)
    assert recorder.entered.wait(300)
    tracker.log({"loss": 2}, 2)
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("FINISHED")
    tracker.log({"loss": 3}, 3)
    end = "1 artifact, the status FINISHED; it did not answer in time; later: accmt sync X"
    assert warned == [
        f"recorder: '{tmp_path / 'notes.txt'}' is not sent yet: do not change it while the training runs",
        f"recorder: not sent yet: 2 values (steps 1 to 2), {end}",
        f"recorder: not sent yet: 3 values (steps 1 to 3), {end}",
    ]
    assert waiting() == "3 values (steps 1 to 3), 1 artifact, the status FINISHED"
    recorder.free.set()
    left_by_its_thread()
    assert recorder.calls == [("log", {"loss": 1.0}, 1)], "nothing is sent behind the back of who was told otherwise"
    assert waiting() == "3 values (steps 1 to 3), 1 artifact, the status FINISHED"


def test_several_trackers_do_not_wait_for_one_another(begun, recorder, batch_recorder, waiting, warned, tmp_path):
    """Those that hang are waited for together, and not again; the journal is kept for them, and for them alone."""
    (tmp_path / "notes.txt").write_text("hello")
    hang = [recorder, type(recorder)(), type(recorder)()]
    for each in hang:
        each.free.clear()
    short = SendingLimits(interval=0.01, artifact=4.0, end_when_killed=0.0)
    tracker = begun(recorder, batch_recorder, *hang[1:], limits=[short, QUICK, short, short])
    for step in range(1, 501):
        tracker.log({"loss": step}, step)
    wait_for(lambda: len(steps_of(batch_recorder)) == 500)
    assert {name: state["run"] for name, state in tracker.state().items()} == {
        **{"recorder": "run 1", "recorder2": None, "recorder3": None, "recorder4": None}
    }
    begin = time.monotonic()
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("KILLED")
    assert 4.0 <= time.monotonic() - begin < 8.0, "once for both, not once for each"
    assert batch_recorder.calls[-3:] == [("file", "notes.txt"), ("file", "notes.txt"), ("close", "KILLED")]
    left = "500 values (steps 1 to 500), 2 artifacts, the status KILLED"
    assert [waiting(name) for name in ("recorder", "recorder2", "recorder3", "recorder4")] == [left, "", left, left]
    for each in hang:
        each.free.set()
    left_by_its_thread()
    again = begun(type(recorder)(), batch_recorder, type(recorder)(), type(recorder)())
    again.close("FINISHED")
    assert batch_recorder.calls[-2:] == [("close", "KILLED"), ("close", "FINISHED")], "nothing twice"
    assert waiting() is None


def test_after_the_end_things_are_sent_at_once(begun, recorder, warned, waiting, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    tracker = begun(recorder)
    tracker.close("FINISHED")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log({"loss": 1}, 9)
    assert recorder.calls == [("close", "FINISHED"), ("file", "notes.txt"), ("log", {"loss": 1.0}, 9)]
    recorder.failures = [OSError("gone")]
    tracker.log_artifact(tmp_path / "notes.txt")
    assert warned == [
        f"recorder: the tracker rejects the artifact '{tmp_path / 'notes.txt'}': OSError: gone",
        "recorder: not sent yet: 1 artifact; OSError: gone; later: accmt sync X",
    ]
    tracker.log({"loss": 2}, 10)
    assert recorder.calls[3:] == [("file", "notes.txt"), ("log", {"loss": 2.0}, 10)], "it is tried again"
    assert waiting() is None


def test_artifacts_that_are_not_there_not_taken_or_gone(begun, recorder, warned, waiting, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    recorder.failures = [NoArtifacts("no place")] * 2
    tracker = begun(recorder, limits=SendingLimits(interval=0.01, artifact=0.5, pause=0.01))
    tracker.log_artifact(tmp_path / "nots.txt")
    tracker.log_artifacts(path)
    tracker.log_artifact(None)
    tracker.log_artifact(path)
    tracker.log_artifact(path)
    recorder.failing = DOWN
    tracker.log_artifact(path)
    tracker.close("FINISHED")
    assert warned[:2] + warned[3:4] == [
        f"recorder: there is no file '{tmp_path / 'nots.txt'}' to send",
        f"recorder: there is no folder '{path}' to send",
        f"recorder: the tracker rejects the artifact '{path}': no place",
    ]
    assert "'None' cannot be sent" in warned[2]
    assert waiting() == "1 artifact, the status FINISHED"
    path.unlink()
    recorder.failing = None
    warned.clear()
    begun(recorder).close("FINISHED")
    assert recorder.calls == [("close", "FINISHED"), ("close", "FINISHED")]
    gone = f"'{path}' no longer exists"
    assert warned == [f"recorder: {gone}: it cannot be sent", f"recorder: not sent: 1 artifact; {gone}"]
    assert waiting() is None


def test_an_artifact_is_sent_when_the_call_returns(begun, recorder, warned, tmp_path, monkeypatch):
    """So that it may change; and it is found where it was given, whatever folder the process works in then."""
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "notes.txt"
    read = []
    recorder.log_artifact = lambda path: (os.chdir(tmp_path / "elsewhere"), read.append(path.read_text()))
    monkeypatch.setenv("HOME", str(tmp_path))
    tracker = begun(recorder, limits=GATHERING)
    tracker.log({"loss": 1}, 1)
    for number, name in enumerate(("notes.txt", "~/notes.txt", path)):
        monkeypatch.chdir(tmp_path)
        path.write_text(str(number))
        tracker.log_artifact(Path(name))
    path.unlink()
    assert read == ["0", "1", "2"]
    tracker.close("FINISHED")
    assert warned == []


def test_what_is_no_number_is_left_out(begun, recorder, warned):
    tracker = begun(recorder)
    for step in (1, 2):
        tracker.log({"text": "good", "two": torch.ones(2), "loss": True, "none": None}, step)
    tracker.log({"text": "good"}, 3)
    tracker.log({"loss": 1}, 2.5)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("log", {"loss": 1.0}, 2), ("close", "FINISHED")]
    assert warned == [
        "recorder: 'text' is not a number at step 1: it is not sent",
        "recorder: 'two' is not a number at step 1: it is not sent",
        "recorder: 'none' is not a number at step 1: it is not sent",
        "recorder: the step 2.5 is not a whole number: its values are not sent",
    ]


def test_a_tracker_that_refuses_to_begin(begun, recorder, warned, waiting, model):
    def refuses():
        raise PermissionError("not yours")

    with pytest.raises(PermissionError, match="not yours"):
        begun(refuses)
    assert not model.exists()
    outbox = Outbox(model)
    sender = Sender(
        "recorder", outbox, outbox.read_by(SentPosition(recipient_of(), run="former")), refuses, print, QUICK
    )
    assert repr(sender.start(may_be_late=False)) == "PermissionError('not yours')"
    tracker = BackgroundTrackers(model, outbox, [sender], warned.append, {"recorder": "accmt sync X"})
    tracker.log({"loss": 1}, 1)
    assert tracker.state()["recorder"]["run"] == "former"
    tracker.close("FINISHED")
    assert warned == [
        "recorder: not sent yet: 1 value (step 1), the status FINISHED; PermissionError: not yours; later: accmt sync X"
    ]
    assert waiting() == "1 value (step 1), the status FINISHED"


def test_a_tracker_that_begins_late_is_told_everything(begun, recorder, warned):
    may_begin = threading.Event()

    def begins_late():
        assert may_begin.wait(300)
        return recorder

    tracker = begun(begins_late, limits=SendingLimits(interval=0.01, start=0.0), run="former", may_be_late=True)
    assert warned == ["recorder does not answer yet: the training starts, and its values are sent later"]
    assert tracker.state()["recorder"]["run"] == "former"
    tracker.log({"loss": 1}, 1)
    may_begin.set()
    wait_for(lambda: recorder.calls)
    assert tracker.state()["recorder"]["run"] == "run 1"
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("close", "FINISHED")]


@pytest.fixture
def disk(monkeypatch):
    """Set it, and writing to outboxes fails in the middle."""
    is_full = threading.Event()
    write = os.write

    def writes(file, content):
        if is_full.is_set():
            write(file, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    monkeypatch.setattr(outbox_module.os, "write", writes)
    return is_full


FULL = "[Errno 28] No space left on device"
SAID = f"recorder: the outbox cannot be written ({FULL}): what is not sent before the end of the training may be lost"


@pytest.mark.parametrize("begins_full", [False, True])
def test_a_full_disk_is_said_once_and_all_is_sent(begun, recorder, warned, waiting, disk, begins_full):
    tracker = begun(recorder)
    for step in range(1, 7):
        (disk.set if step in (3, 4) or (begins_full and step < 3) else disk.clear)()
        tracker.log({"loss": step}, step)
    tracker.close("FINISHED")
    assert [call[2] for call in recorder.calls if call[0] == "log"] == [1, 2, 3, 4, 5, 6]
    assert recorder.calls[-1] == ("close", "FINISHED")
    assert warned == [SAID]
    assert waiting() is None


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(begun, recorder, batch_recorder, waiting, disk):
    recorder.failing = DOWN
    tracker = begun(recorder, batch_recorder, limits=SLOW)
    disk.set()
    for step in (1, 2, 3):
        tracker.log({"loss": step}, step)
    wait_for(lambda: steps_of(batch_recorder) == [1, 2, 3])
    disk.clear()
    tracker.close("FINISHED")
    assert steps_of(batch_recorder) == [1, 2, 3]
    assert waiting() == "3 values (steps 1 to 3), the status FINISHED"
    assert waiting("recorder2") == ""


def test_a_full_disk_and_a_dead_tracker_lose_the_oldest_and_say_so(begun, recorder, warned, disk, monkeypatch):
    monkeypatch.setattr(outbox_module, "MOST_VALUES", 10)
    recorder.failing = DOWN
    tracker = begun(recorder, limits=SLOW)
    disk.set()
    for step in range(1, 31):
        tracker.log({"loss": step}, step)
    assert len(tracker._outbox._readers[0].memory) <= 10
    tracker.close("FINISHED")
    assert sorted(warned) == [
        "recorder does not answer, the training continues without it: no route",
        f"recorder: not sent: 30 values (steps 1 to 30), the status FINISHED; {FULL}",
        SAID,
    ]


def test_a_folder_that_cannot_be_written_is_no_error(begun, recorder, warned, model):
    model.write_text("in the way")
    tracker = begun(recorder)
    tracker.log({"loss": 1}, 1)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("close", "FINISHED")]
    assert [text.split(" (")[0] for text in warned] == ["recorder: the outbox cannot be written"]


def test_what_waited_comes_first_and_what_is_logged_again_does_not(begun, recorder, waiting):
    """A training fails, and is resumed from a checkpoint at step 2, and again."""
    recorder.failing = DOWN
    tracker = begun(recorder, limits=SLOW)
    tracker.log({"loss": 1}, 1)
    tracker.log({"later": 9}, 9)  # logged before the checkpoint, whatever its step
    tracker.log({"loss": 2}, 2)
    state = tracker.state()["recorder"]
    tracker.log({"checkpoint": 1}, 2)
    tracker.log({"loss": 3}, 3)
    tracker.close("FAILED")
    resumption = Resumption(2, state["until"], state["until"] + 60_000)
    second = begun(recorder, limits=SLOW, resumption=resumption)
    second.log({"loss": 30}, 3)
    state = second.state()["recorder"]
    second.log({"loss": 40}, 4)
    second.close("KILLED")
    recorder.failing = None
    third = begun(recorder, resumption=Resumption(3, state["until"], state["until"] + 60_000))
    assert not third._senders[0].reader.next(1), "it may still turn out that it cannot be resumed"
    third.log({"loss": 400}, 4)
    third.close("FINISHED")
    assert recorder.calls == [
        ("log", {"loss": 1.0}, 1),
        ("log", {"later": 9.0}, 9),
        ("log", {"loss": 2.0, "checkpoint": 1.0}, 2),
        ("log", {"loss": 30.0}, 3),
        ("log", {"loss": 400.0}, 4),
        ("close", "FINISHED"),
    ]
    assert waiting() is None


@pytest.mark.parametrize("status", ["FAILED", "FINISHED"])
def test_a_training_that_could_not_be_resumed_leaves_all_as_it_was(begun, recorder, waiting, status):
    """And one that had nothing more to do sends what waited."""
    recorder.failing = DOWN
    tracker = begun(recorder, limits=SLOW)
    for step in (1, 2, 3):
        tracker.log({"loss": step}, step)
    tracker.close("KILLED")
    recorder.failing = None
    begun(recorder, resumption=Resumption(2, 0, 1)).close(status)
    if status == "FAILED":
        assert recorder.calls == [("close", "FAILED")]
        assert waiting() == "3 values (steps 1 to 3), the status KILLED"
    else:
        assert recorder.calls == [("log", {"loss": 1.0}, 1), ("log", {"loss": 2.0}, 2), ("close", "FINISHED")]
        assert waiting() is None


def test_times_never_go_back_and_a_checkpoint_is_between_two(begun, batch_recorder, monkeypatch, model):
    """Also when the clock does."""
    clock = [5_000.0]
    monkeypatch.setattr("accmt.tracking.background.time.time", lambda: clock[0])
    batch_recorder.free.clear()
    tracker = begun(batch_recorder)
    tracker.log({"loss": 1}, 1)
    clock[0] = 4_000.0
    tracker.log({"loss": 2}, 2)
    until = tracker.state()["recorder"]["until"]
    tracker.log({"loss": 3}, 3)
    lines = (model / FOLDER / "0001.jsonl").read_text().splitlines()[1:]
    batch_recorder.free.set()
    assert [json.loads(line)["time"] for line in lines] == [5_000_000, 5_000_000, 5_000_001]
    assert until == 5_000_000
    tracker.close("FINISHED")


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent / "support")]
from conftest import recipient_of
from accmt.tracking.outbox import Outbox
from accmt.tracking.records import SentPosition
from accmt.tracking.tracker import Logged
outbox = Outbox(Path(sys.argv[1]))
reader = outbox.read_by(SentPosition(recipient_of()))
step = int(sys.argv[3])
print("ready", flush=True)
while True:
    outbox.add(Logged({"loss": float(step)}, step, step))
    step += 1
    if len(reader.next(1)) and step % 3 == 0:
        reader.settle(1, reader.sent)
        print(reader.sent.last, flush=True)
"""


def test_a_process_that_is_killed_at_any_moment(model, begun, batch_recorder):
    """Nothing that it wrote is lost, and nothing that it said to be sent comes again, but for the last call."""
    said, pause = [-1], threading.Event()
    for turn in range(4):
        command = [sys.executable, "-c", WRITER, str(model), str(Path(__file__).parent), str(turn * 1_000_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            pause.wait(0.01 * turn)
            process.send_signal(signal.SIGKILL)
            said += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    tracker = begun(batch_recorder)
    tracker.close("FINISHED")
    steps = steps_of(batch_recorder)
    assert steps == sorted(set(steps))
    assert max(said) < steps[0], "only what was not sent is sent"
    for begin in range(0, 4_000_000, 1_000_000):
        found = [step for step in steps if begin <= step < begin + 1_000_000]
        sent = [step for step in said if begin <= step < begin + 1_000_000]
        assert not sent or not found or found[0] - max(sent) in (1, 2), "and nothing between is missing"
        assert not found or found == list(range(found[0], found[-1] + 1))


def test_a_line_that_was_cut_off_or_damaged_is_passed_over(begun, recorder, leave, model, waiting, warned):
    """Cut off at every byte: the complete lines are there, and what is logged later too."""
    entries = [Logged({"loss": float(step), "größe\ud800": 1.0}, step, step) for step in (1, 2)]
    leave(*entries, Artifact(Path("/no/such\udcff"), False, 3))
    path = model / FOLDER / "0001.jsonl"
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    for size in (*range(start, len(content)), len(content)):
        path.write_bytes(content[:size])
        expected = ["", "2 values (step 1)", "4 values (steps 1 to 2)", "4 values (steps 1 to 2), 1 artifact"]
        assert waiting() == expected[content[:size].count(b"\n") - 1]
    path.write_bytes(content[:-5])
    recorder.free.clear()
    tracker = begun(recorder)
    tracker.log({"loss": 3}, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:3] == content.splitlines(keepends=True)[:3], "what was cut off is not written on"
    recorder.free.set()
    tracker.close("FINISHED")
    assert [call[2] for call in recorder.calls if call[0] == "log"] == [1, 2, 3]
    wrong = [b"\0" * 20, b'{"time": 1, "step": "two", "values": {"loss": 1.0}}', b"[]", b'{"time": 1, "status": "X"}']
    leave(*entries)
    path.write_bytes(path.read_bytes() + b"\n".join(wrong) + b"\n" + content.splitlines(keepends=True)[1])
    begun(recorder).close("FINISHED")
    assert warned[-1] == "recorder: not sent: 4 damaged lines"
    assert [call[2] for call in recorder.calls if call[0] == "log"] == [1, 2, 3, 1, 2, 1]
    assert waiting() is None


def test_a_part_that_was_about_to_begin_is_none(leave, model, waiting):
    """The process was killed before the first line was complete, so that nothing can be in it."""
    path = model / FOLDER / "0001.jsonl"
    for size in (0, 1, -1):
        leave(RunEnd("FINISHED", 1))
        path.write_bytes(path.read_bytes().splitlines()[0][:size])
        assert waiting() == ""
        assert not path.exists()


def test_what_is_no_outbox_is_left_alone(begun, recorder, model, leave):
    """Neither links, nor files of other kinds, nor damaged ones are used, changed or deleted."""
    leave(Logged({"loss": 1.0}, 1, 1), tracker="other")
    folder = model / FOLDER
    contents = {"0009.jsonl": '{"outbox": 9, "recipients": {}}\n', "x.json": "{}", "0008.jsonl": "no\n", "a.txt": "a"}
    for name, content in contents.items():
        (folder / name).write_text(content)
    (folder / "0007.jsonl").symlink_to(folder / "0001.jsonl")
    outbox = Outbox(model)
    assert sorted(text.split(": ")[0] for text in outbox.problems) == [
        *(f"{folder / name} is damaged" for name in ("0007.jsonl", "0008.jsonl", "0009.jsonl", "x.json"))
    ]
    outbox.release()
    tracker = begun(recorder)
    tracker.log({"loss": 2}, 2)
    tracker.close("FINISHED")
    assert [call[2] for call in recorder.calls if call[0] == "log"] == [2]
    assert {name: (folder / name).read_text() for name in contents} == contents
    assert waiting_in(model)["other"] == "1 value (step 1)"


def test_an_outbox_of_an_earlier_version_is_left_and_said(begun, recorder, model):
    path = model / FOLDER / "mlflow-0123-0001.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"outbox": 1}\n{"time": 1, "step": 1, "values": {"loss": 1.0}}\n')
    assert Outbox(model).problems == [
        f"{model / FOLDER} holds what an earlier version of accmt could not send (mlflow-0123-0001.jsonl): this "
        "version leaves it as it is; call the same `accmt sync` with that version, or delete these files"
    ]
    tracker = begun(recorder)
    tracker.log({"loss": 2}, 2)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 2.0}, 2), ("close", "FINISHED")]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_however_many_wait_they_wait_on_the_disk_and_go_when_sent(begun, batch_recorder, model, warned):
    batch_recorder.free.clear()
    tracker = begun(batch_recorder, limits=QUICK)
    for step in range(40_001):
        tracker.log({"loss": step}, step)
    assert len(list((model / FOLDER).glob("*.jsonl"))) >= 2, "a file has a bounded size"
    assert sum(len(reader._ahead) + len(reader.memory) for reader in tracker._outbox._readers) < 3000
    batch_recorder.free.set()
    wait_for(lambda: len(steps_of(batch_recorder)) == 40_001)
    wait_for(lambda: len(list((model / FOLDER).glob("*.jsonl"))) == 1)
    tracker.close("FINISHED")
    assert steps_of(batch_recorder) == list(range(40_001))
    assert warned == []


def test_what_another_process_uses_is_not_touched(begun, recorder, model, leave):
    leave(Logged({"loss": 1.0}, 1, 1))
    program = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(model / FOLDER / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        before = {path: path.read_bytes() for path in (model / FOLDER).iterdir()}
        assert Outbox(model).problems == [f"{model / FOLDER} is in use by another process"]
        tracker = begun(recorder)
        tracker.log({"loss": 2}, 2)
        tracker.close("FINISHED")
        assert recorder.calls == [("log", {"loss": 2.0}, 2), ("close", "FINISHED")]
        assert {path: path.read_bytes() for path in (model / FOLDER).iterdir()} == before
        process.communicate()


def test_only_the_owner_may_read_it_and_it_holds_no_password(leave, model):
    location = "http://me:secret@host:5000"
    arguments = {"tags": {"u": location}}
    leave(Logged({"a": 1.0}, 1, 1), location=location, parameters={"db": "pg://u:secret@h/d"}, arguments=arguments)
    for path in (model / FOLDER).iterdir():
        assert "secret" not in path.read_text()
        assert path.name == "lock" or stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Outbox(model)
    reader = again.read_by(SentPosition(recipient_of(location=location)))
    assert (reader.waiting().values, reader.position.recipient.location) == (1, location), "the same run"
    again.release()


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", "..", "größe", "x" * 300, "a\0b", "A b"])
def test_names_never_leave_the_folder(leave, model, name, waiting):
    leave(Logged({"a": 1.0}, 1, 1), tracker=name)
    leave(Logged({"a": 1.0}, 1, 1), tracker="plain")
    assert waiting(name) == "1 value (step 1)"
    assert sorted(path.suffix for path in (model / FOLDER).iterdir()) == ["", ".json", ".json", ".jsonl", ".jsonl"]
    assert [path for path in model.parent.rglob("*") if path.parent not in (model / FOLDER, model, model.parent)] == []
