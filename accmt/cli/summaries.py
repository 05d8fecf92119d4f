"""Reports of decisions for people: a summary of each rule, and when the training stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from accmt.checkpoint.saved_models import best_in, savings_in
from accmt.files.json_io import DamagedFile
from accmt.rules import Decision, Outcome, Verdict


def summaries(decisions: Sequence[Decision], saved: str, rule: str | None = None) -> list[str]:
    """Return one line for each rule: when it saved, or why it never did. `saved` is the verb."""
    verdicts: dict[str, list[tuple[Decision, Verdict]]] = {}
    averages = {d.average.rule: f"; {d.average.reason}" for d in decisions if d.average is not None}
    for decision in decisions:
        for verdict in decision.verdicts:
            if rule in (None, verdict.rule):
                verdicts.setdefault(verdict.rule, []).append((decision, verdict))
    return [f"{name}: {_summary(pairs, saved)}{averages.get(name, '')}" for name, pairs in verdicts.items()]


def held_out_summaries(model_path: Path, rules: Sequence[str]) -> list[str]:
    """Return a line for each of these rules whose best model was evaluated on held-out datasets, in their order."""
    lines = {}
    for folder in savings_in(model_path):
        with suppress(DamagedFile, OSError):
            saved = best_in(folder)
            if saved is not None and saved.held_out:
                values = ", ".join(f"{name} {value:.6g}" for name, value in saved.measured.items())
                lines[saved.rule] = f"{saved.rule}: held out, model of step {saved.step}: {values}"
    return [lines[rule] for rule in rules if rule in lines]


def moment(decision: Decision) -> str:
    """Describe when the decision was made."""
    return f"after evaluation {decision.progress.evaluation}, at step {decision.progress.step}"


def _summary(pairs: list[tuple[Decision, Verdict]], saved: str) -> str:
    saves = [(decision, verdict) for decision, verdict in pairs if verdict.outcome is Outcome.SAVED]
    if not saves:
        counts = Counter(verdict.outcome.value for _, verdict in pairs if verdict.outcome is not Outcome.INACTIVE)
        why = ", ".join(f"{outcome} {_times(count)}" for outcome, count in counts.items())
        return f"{saved} nothing" + (f" ({why})" if why else "")
    kept = saves[-1][1].kept
    best = ", ".join(f"{value:.6g}" for value in kept[0].values)
    last = f"{best} of evaluation {kept[0].evaluation}, at step {kept[0].step}"
    others = ", ".join(str(entry.evaluation) for entry in kept[1:])
    more = f"; also kept: evaluation{'s' * (len(kept) > 2)} {others}" if others else ""
    return f"{saved} {_times(len(saves))}; the best at the end is {last}{more}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
