"""Simulates trainings whose true accuracy is known, for docs/beyond-noise.md.

`python scripts/noise.py` draws docs/beyond-noise.png and prints the tables of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from accmt.rules import Outcome, SavingRule
from accmt.rules.ranking import Candidate, Objective, RankedRule, RuleState, judge

SAMPLES, REPLICATES, EVALUATIONS, TRAININGS = 1_000, 200, 20, 100
PICTURE = Path(__file__).parent.parent / "docs" / "beyond-noise.png"
_DIFFICULTY = 0.8  # the share of the variance that is the samples', not the models'

Right = NDArray[np.bool_]


def flat(evaluation: int) -> float:
    """Return the true accuracy of a training that learns nothing more."""
    return 0.8


def learning(evaluation: int) -> float:
    """Return the true accuracy of a training that approaches 0.8."""
    return float(0.8 - 0.1 * np.exp(-evaluation / 4))


def training(seed: int, curve: Callable[[int], float], evaluations: int = EVALUATIONS) -> Iterator[Right]:
    """Yield the samples on which each model is right: difficult ones are difficult for all."""
    generator = np.random.default_rng(seed)
    difficulty = np.sqrt(_DIFFICULTY) * generator.standard_normal(SAMPLES)
    for number in range(1, evaluations + 1):
        found = difficulty + np.sqrt(1 - _DIFFICULTY) * generator.standard_normal(SAMPLES)
        yield found < NormalDist().inv_cdf(curve(number))


def decided(
    text: str, seed: int, patience: int | None, curve: Callable[[int], float] = learning
) -> tuple[list[int], float, int]:
    """Return the evaluations at which a rule saves, the accuracy that it reports, and its last evaluation."""
    rule = SavingRule.parse(text, patience=patience)
    [expression] = rule.saving.ranking.objectives
    ranked, state = RankedRule(rule, rule.name, ((Objective(expression, True, text),),)), RuleState()
    saved, number = [], 0
    for number, right in enumerate(training(seed, curve), 1):
        candidate = Candidate((float(right.mean()),), number, number, replicates=(tuple(RESAMPLES @ right),))
        verdict, state = judge(ranked, state, candidate)
        saved += [number] * (verdict.outcome is Outcome.SAVED)
        if verdict.patience_left == 0:
            break
    return saved, state.kept[0].values[0], number


def best_of() -> Iterator[str]:
    """Yield the table of the best of many evaluations."""
    yield "| evaluations | the best one reports | too much by |"
    yield "| --- | --- | --- |"
    measured = np.array([[right.mean() for right in training(seed, flat, 50)] for seed in range(TRAININGS)])
    for count in (1, 5, 20, 50):
        best = measured[:, :count].max(axis=1).mean()
        yield f"| {count} | {best:.3f} | {best - 0.8:.3f} |"


def luck() -> Iterator[str]:
    """Yield the table of what rules do while nothing is learned."""
    yield "| rule | keeps the first model in | models saved | reports | too much by |"
    yield "| --- | --- | --- | --- | --- |"
    for text in ("accuracy", "accuracy by 1 se", "accuracy by 2 se", "accuracy by 3 se"):
        found = [decided(text, seed, None, flat) for seed in range(TRAININGS)]
        first, saves = np.mean([len(saved) == 1 for saved, *_ in found]), np.mean([len(saved) for saved, *_ in found])
        reported = np.mean([value for _, value, _ in found])
        yield f"| `best_{text}` | {first:.0%} | {saves:.1f} | {reported:.3f} | {reported - 0.8:.3f} |"


def costs() -> Iterator[str]:
    """Yield the table of what each amount costs while something is learned."""
    yield "| rule | patience | models saved | ends after | reports | is really |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for patience in (None, 8, 3):
        for text in ("accuracy", "accuracy by 1 se", "accuracy by 2 se"):
            found = [decided(text, seed, patience) for seed in range(TRAININGS)]
            saves, last = np.mean([len(saved) for saved, *_ in found]), np.mean([number for *_, number in found])
            reported = np.mean([value for _, value, _ in found])
            real = np.mean([learning(saved[-1]) for saved, *_ in found])
            row = (
                f"`best_{text}`",
                patience or "none",
                f"{saves:.1f}",
                f"{last:.1f}",
                f"{reported:.3f}",
                f"{real:.3f}",
            )
            yield f"| {' | '.join(map(str, row))} |"


def draw(seed: int = 12) -> None:
    """Draw the picture of the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = np.arange(1, EVALUATIONS + 1)
    same = np.array([model.mean() for model in training(seed, flat)])
    left.plot(numbers, same, "o", color="#4477aa", label="measured")
    left.axhline(0.8, color="black", linewidth=1, label="true accuracy of every model")
    best = int(same.argmax())
    left.plot(best + 1, same[best], "o", markersize=13, fillstyle="none", color="#cc3311", label="what is chosen")
    left.set_ylim(bottom=same.min() - 0.015)  # room for the legend
    left.set(title="Twenty models of equal accuracy", xlabel="evaluation", ylabel="accuracy on 1,000 samples")
    measured = np.array([model.mean() for model in training(seed, learning)])
    right.plot(numbers, [learning(number) for number in numbers], color="black", linewidth=1, label="true accuracy")
    right.plot(numbers, measured, "o", color="#4477aa", label="measured")
    for text, marker, color, size in (("accuracy", "s", "#cc3311", 14), ("accuracy by 2 se", "o", "#228833", 11)):
        saved, _, last = decided(text, seed, 3)
        at = [number - 1 for number in saved]
        label = f"best_{text}: saved, and ended"
        right.plot(numbers[at], measured[at], marker, markersize=size, fillstyle="none", color=color, label=label)
        right.axvline(last, color=color, linestyle=":")
    right.set(title="A training, with patience 3", xlabel="evaluation")
    for axes in (left, right):
        axes.legend(fontsize="small")
        axes.set_xticks(range(2, EVALUATIONS + 1, 2))
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


_generator = np.random.default_rng(0)
RESAMPLES = _generator.multinomial(SAMPLES, np.full(SAMPLES, 1 / SAMPLES), size=REPLICATES) / SAMPLES

if __name__ == "__main__":
    print("\n".join([*best_of(), "", *luck(), "", *costs()]))  # noqa: T201  (a program)
    draw()
