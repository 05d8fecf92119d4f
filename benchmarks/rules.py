"""How long the rule language takes: to parse, to decide, to answer at a step, to replay a history.

    python benchmarks/rules.py [--rounds 5]

Each figure is the minimum over the rounds: other work on the machine only ever adds time. The imports, the first parse
and the replay run in fresh processes; the peak memory is that of the replay's whole process.
"""

import argparse
import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from accmt.rules import (  # noqa: E402  (the checkout goes before what is installed)
    CadenceRule,
    Facts,
    Length,
    Observation,
    Progress,
    Reported,
    RuleEngine,
    Rules,
    SavingRule,
    StopCondition,
    check,
)

TYPICAL = ("best_accuracy@dev", "best_accuracy@dev/f1@test keep 3", "best_valid_loss by 1% if step > 100 after 1 epoch")
METRICS = [f"metric{number}" for number in range(50)]
DATASETS = tuple(f"set{number}" for number in range(100))
SHAPES = (
    "best_{a}",
    "best_{a}@{d}",
    "best_{a}@{d}@{e}/{b}@{e}",
    "best_{a} if {b}@{d} > 0.1 keep 3",
    "best_worst({a}) by 1%",
    "best_avg({a}@{d}, 5) then {b}",
    "best_0.5 * {a} + {b}@{e} after 1 epoch",
    "best_{a}/{b} if not stalled({a}@{d}, 10)",
)
STEPS = 100
HISTORY = 100_000
IMPORT = "from time import perf_counter; start = perf_counter(); import accmt.rules; print(perf_counter() - start)"
BUILD = """
from time import perf_counter
import accmt.rules as rules
start = perf_counter()
rules.SavingRule.parse("best_accuracy")
print(perf_counter() - start)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="How long the rule language takes.")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each measurement (default: 5)")
    parser.add_argument("--replay", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.replay:
        print(*replay())
        return 0

    rounds = arguments.rounds
    report("import of accmt.rules", min(fresh("-c", IMPORT)[0] for _ in range(rounds)))
    report("first parse, the parser's tables included", min(fresh("-c", BUILD)[0] for _ in range(rounds)))
    for text in TYPICAL:
        report(f"parse '{text}'", time_parse(text, rounds), "at most 0.5 ms")
    for number in (250, 500, 1000):
        target = "at most 50 ms" if number == 1000 else ""
        report(f"a decision over {number:,} rules, 50 metrics, 100 datasets", time_decision(number, rounds), target)
    report("the question at a step where nothing is due", time_question(rounds), "at most 1 us")
    report("the answer at a step where something is due", time_answer(rounds))
    replays = [fresh(__file__, "--replay") for _ in range(min(rounds, 3))]
    report(f"replay of {HISTORY:,} evaluations", min(seconds for seconds, _ in replays), "at most 5 s")
    print(f"{'  its peak memory':<72}{max(peak for _, peak in replays):>8.0f} MB   at most 300 MB")
    return 0


def report(what: str, seconds: float, target: str = "") -> None:
    unit, scale = next((u, s) for u, s in (("s ", 1.0), ("ms", 1e3), ("us", 1e6)) if seconds * s >= 1 or u == "us")
    print(f"{what:<72}{seconds * scale:>8.3f} {unit}   {target}".rstrip())


def fresh(*arguments: str) -> list[float]:
    """The numbers that a program prints in a fresh process."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment
    )
    return [float(word) for word in process.stdout.split()]


def fastest(action: Callable[[], object], rounds: int, repetitions: int) -> float:
    """The seconds that an action takes at best."""
    action()
    gc.collect()
    times = []
    for _ in range(rounds):
        start = perf_counter()
        for _ in range(repetitions):
            action()
        times.append((perf_counter() - start) / repetitions)
    return min(times)


def time_parse(text: str, rounds: int) -> float:
    return fastest(lambda: SavingRule.parse(text), rounds, 200)


def time_decision(number: int, rounds: int) -> float:
    """The seconds of one decision over so many rules."""
    facts = Facts({name: Reported(DATASETS, True) for name in METRICS}, DATASETS, Length(100_000, 1_000))
    rules = Rules(tuple(SavingRule.parse(written(index), name=f"rule{index}", patience=5) for index in range(number)))
    check(rules, facts)
    engine = RuleEngine(rules, facts)
    generator = random.Random(0)
    times = []
    for evaluation in range(1, 4 * rounds + 1):
        values = {dataset: {name: generator.random() for name in METRICS} for dataset in DATASETS}
        progress = Progress(step=evaluation * 100, epoch=evaluation // 10, evaluation=evaluation)
        observation = Observation(progress, values, generator.random())
        start = perf_counter()
        engine.after_evaluation(observation)
        times.append(perf_counter() - start)
    return min(times[len(times) // 2 :])


def written(index: int) -> str:
    """The text of one of many different rules."""
    generator = random.Random(index)
    a, b = generator.sample(METRICS, 2)
    d, e = generator.sample(DATASETS, 2)
    return SHAPES[index % len(SHAPES)].format(a=a, b=b, d=d, e=e)


def small_engine() -> RuleEngine:
    """Four rules on two datasets, a stop condition and two cadences."""
    datasets = ("dev", "test")
    metrics = {name: Reported(datasets, name != "valid_loss") for name in ("accuracy", "f1", "valid_loss")}
    facts = Facts(metrics, datasets, Length(HISTORY * STEPS, 10 * STEPS, 32))
    texts = ("best_accuracy@dev/f1@test keep 3", "best_valid_loss by 1%", "best_avg(f1, 5)", "best_worst(accuracy)")
    rules = Rules(
        tuple(SavingRule.parse(text) for text in texts),
        (StopCondition.parse("valid_loss < 0 or elapsed > 1000 hours"),),
        CadenceRule.parse(f"{STEPS} steps"),
        CadenceRule.parse("1 epoch or 4 hours"),
    )
    check(rules, facts)
    return RuleEngine(rules, facts)


def time_question(rounds: int) -> float:
    engine = small_engine()
    position = Progress(step=7)
    repetitions = 100_000

    def ask() -> None:
        for _ in range(repetitions):
            if engine.next_step is not None and position.step >= engine.next_step:
                raise AssertionError("nothing is due here")

    return fastest(ask, rounds, 1) / repetitions


def time_answer(rounds: int) -> float:
    engine = small_engine()
    moments = iter(range(STEPS, 10**9, STEPS))

    def answer() -> None:
        step = next(moments)
        engine.after_step(Progress(step=step, samples=32 * step, elapsed=0.1 * step))

    return fastest(answer, rounds, 500)


def replay() -> tuple[float, float]:
    """Seconds and peak megabytes of a process that replays a long history."""
    import resource

    engine = small_engine()
    generator = random.Random(0)
    seconds, saved = 0.0, 0
    for evaluation in range(1, HISTORY + 1):
        step = evaluation * STEPS
        progress = Progress(step, evaluation // 10, (evaluation % 10) * STEPS, evaluation, 32 * step, 0.1 * step)
        values = {d: {m: generator.random() for m in ("accuracy", "f1", "valid_loss")} for d in ("dev", "test")}
        observation = Observation(progress, values, generator.random())
        start = perf_counter()
        saved += len(engine.after_evaluation(observation).saved)
        seconds += perf_counter() - start
    if not saved:
        raise AssertionError("a replay that saves nothing measures nothing")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds, peak * (1024 / 1000)


if __name__ == "__main__":
    sys.exit(main())
