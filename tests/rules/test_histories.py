"""What holds of every history under every set of rules: asking changes nothing, and a resume leaves no trace."""

import json
import math
import random
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accmt.rules import (
    CadenceRule,
    Decision,
    Facts,
    Length,
    Observation,
    Progress,
    RecordedReplicates,
    Reported,
    RuleEngine,
    Rules,
    SavingRule,
    StopCondition,
    check,
    with_replicates,
)

STEPS_PER_EPOCH, TOTAL, BATCH = 7, 40, 4
METRICS = {"acc": Reported(("a", "b"), True), "loss": Reported(("a", "b"), False), "odd": Reported(("a",), None)}
FACTS = Facts(METRICS, ("a", "b"), Length(TOTAL, STEPS_PER_EPOCH, BATCH))

often = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

VALUES = [0.0, 0.1, 0.2, 0.3, 0.5, 0.50001, 1.0, -1.0, math.nan, math.inf, -math.inf]
objectives = st.sampled_from(
    [
        "acc", "acc@a", "acc@a@b", "acc@*", "loss", "loss@b", "train_loss", "1 - acc", "acc - 0.5 * loss@a", "2 * acc",
        "max(odd)", "min(acc + loss)", "worst(acc)", "worst(loss)", "lowest(acc@a@b)", "highest(loss)", "mean(acc@a)",
        "avg(acc, 2)", "avg(loss@a, 3)", "ema(acc, 0.5)", "ema(train_loss, 1)", "best(acc)", "best(avg(loss, 2))",
        "max(avg(acc - loss, 2))",
    ]
)  # fmt: skip
simple = st.sampled_from(
    [
        "acc > 0.2", "loss@a <= 0.3", "train_loss != 0.1", "acc is nan", "step > 12", "epoch >= 2 epochs",
        "epoch > 50%", "step >= 30%", "elapsed > 0.5 minutes", "evaluation == 3", "stalled(acc, 2)",
        "stalled(train_loss, 3, 0.1)",
        "best(acc) > acc + 0.1", "acc > -0.5", "avg(odd, 2) < 0.4", "worst(acc) >= lowest(loss)",
    ]
)  # fmt: skip
quantities = st.sampled_from(
    [
        "1 step",
        "3 steps",
        "1 epoch",
        "2 epochs",
        "0.5 epochs",
        "0.3 epochs",
        "10%",
        "33%",
        "9 samples",
        "20 samples",
        "2 evaluations",
        "20 seconds",
        "1.5 minutes",
    ]
)


@st.composite
def condition(draw):
    parts = draw(st.lists(simple, min_size=1, max_size=3))
    parts = [f"not ({part})" if draw(st.booleans()) else part for part in parts]
    return draw(st.sampled_from([" and ", " or "])).join(parts)


@st.composite
def saving(draw, number):
    ranking = draw(st.lists(objectives, min_size=1, max_size=3))
    text = ranking[0] + "".join(draw(st.sampled_from(["/", " then "])) + objective for objective in ranking[1:])
    amounts = ["", " by 0.1", " by 20%"] + [" by 2 se", " by 0.5 se"] * ("train_loss" not in text)
    text += draw(st.sampled_from(amounts)) + draw(st.sampled_from(["", " keep 2", " keep 3"]))
    text += draw(st.just("") | condition().map(" if {}".format)) + draw(
        st.just("") | quantities.map(" after {}".format)
    )
    limits = draw(st.sampled_from([{}, {}, {"saving_below": 0.4}, {"saving_above": 0.1}, {"saving_above": -math.inf}]))
    return SavingRule.parse(text, name=f"rule{number}", patience=draw(st.sampled_from([None, 1, 2, 3])), **limits)


@st.composite
def cadence(draw, allowed=quantities):
    text = " or ".join(draw(st.lists(allowed, min_size=1, max_size=3)))
    return CadenceRule.parse(text + draw(st.just("") | allowed.map(" after {}".format)))


@st.composite
def every_rule(draw):
    return Rules(
        tuple(draw(saving(number)) for number in range(draw(st.integers(1, 3)))),
        tuple(StopCondition.parse(text) for text in draw(st.lists(condition(), max_size=2))),
        draw(st.none() | cadence(quantities.filter(lambda text: "evaluation" not in text))),
        draw(st.none() | cadence()),
    )


def _is_on(metric, dataset):
    return dataset in METRICS[metric].datasets


def training_of(seed):
    """For every step its progress, whether an epoch ends, the evaluation if any, the loss if it is logged."""
    generator = random.Random(seed)
    elapsed, samples, evaluation, found = 0.0, 0, 0, []
    for step in range(1, TOTAL + 1):
        elapsed += generator.choice([0.0, 0.1, 1.0, 7.3, 30.0])
        samples += generator.randint(1, BATCH)
        ended = step % STEPS_PER_EPOCH == 0 or step == TOTAL
        epoch = -(-step // STEPS_PER_EPOCH) if ended else step // STEPS_PER_EPOCH
        at = Progress(step, epoch, 0 if ended else step % STEPS_PER_EPOCH, evaluation, samples, elapsed)
        observation = None
        if ended or generator.random() < 0.25:
            evaluation += 1
            elapsed += generator.choice([0.0, 12.5])
            after = replace(at, evaluation=evaluation, elapsed=elapsed)
            reported = {
                key: {m: generator.choice(VALUES) for m in METRICS if generator.random() < 0.9 and _is_on(m, key)}
                for key in "ab"
            }
            observation = Observation(
                after, reported, generator.choice(VALUES), replicates=replicates_of(reported, generator)
            )
        found.append((at, ended, observation, generator.choice([None, *VALUES])))
    return found


def replicates_of(reported, generator):
    """Six replicates of nearly every value, some of them nan."""

    def around(value):
        return tuple(math.nan if generator.random() < 0.1 else value + generator.gauss(0, 0.1) for _ in range(6))

    return {
        dataset: {metric: around(value) for metric, value in values.items() if generator.random() < 0.95}
        for dataset, values in reported.items()
    }


trainings = st.integers(0, 2**32).map(training_of)


def run(engine, training):
    """What the engine answers at each moment of a training."""
    for at, _, observation, logged in training:
        due = engine.after_step(at)
        stop = None if logged is None else engine.after_logging(at, logged)
        decision = None if observation is None else engine.after_evaluation(observation)
        yield (
            due,
            stop,
            decision,
            engine.standing_stop(at),
            engine.patience_left(),
            engine.next_step,
            engine.next_elapsed,
        )


@often
@given(every_rule(), trainings, st.integers(0, TOTAL - 1))
def test_a_resume_is_as_if_nothing_had_happened(rules, training, at):
    check(rules, FACTS)
    engine = RuleEngine(rules, FACTS)
    before = list(run(engine, training[:at]))
    text = json.dumps(engine.state(), allow_nan=False, sort_keys=True)
    resumed = RuleEngine(rules, FACTS)
    assert resumed.restore(json.loads(text)) == []
    assert json.dumps(resumed.state(), allow_nan=False, sort_keys=True) == text
    if before:
        assert resumed.standing_stop(training[at - 1][0]) == before[-1][3]
        assert (resumed.next_step, resumed.next_elapsed) == before[-1][5:]
    assert list(run(resumed, training[at:])) == list(run(engine, training[at:]))


@often
@given(every_rule(), trainings)
def test_asking_changes_nothing(rules, training):
    engine, asked = RuleEngine(rules, FACTS), RuleEngine(rules, FACTS)
    for at, _, observation, _ in training:
        assert engine.after_step(at) == asked.after_step(at)
        state = asked.state()
        asked.standing_stop(at)
        asked.after_logging(at, 0.3)
        asked.patience_left()
        initial = Observation(at, {"a": {"acc": 9.0, "loss": -9.0}}, -9.0, initial=True)
        assert not asked.after_evaluation(initial).saved
        assert asked.state() == state
        if observation is not None:
            assert engine.after_evaluation(observation) == asked.after_evaluation(observation)


@often
@given(every_rule(), trainings)
def test_decisions_and_observations_survive_json(rules, training):
    engine = RuleEngine(rules, FACTS)
    for _, _, observation, _ in training:
        if observation is not None:
            text = json.dumps(observation.to_json(), allow_nan=False)
            again = Observation.from_json(json.loads(text))
            assert again == observation
            recorded = RecordedReplicates(observation.progress.evaluation, observation.replicates)
            text = json.dumps(recorded.to_json(), allow_nan=False)
            [again] = with_replicates([again], [RecordedReplicates.from_json(json.loads(text))])
            assert repr(again.replicates) == repr(observation.replicates)
            decision = engine.after_evaluation(again)
            assert Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False))) == decision


@often
@given(every_rule(), trainings)
def test_what_is_kept_is_what_was_saved(rules, training):
    engine = RuleEngine(rules, FACTS)
    kept = {rule.name: () for rule in rules.savings}
    for _, _, observation, _ in training:
        if observation is None:
            continue
        for rule, verdict in zip(rules.savings, engine.after_evaluation(observation).verdicts, strict=True):
            new = [entry for entry in verdict.kept if entry not in kept[rule.name]]
            assert len(verdict.kept) <= rule.keep
            assert [entry.evaluation for entry in new] == [observation.progress.evaluation] * (
                verdict.outcome == "saved"
            )
            assert not any(map(math.isnan, (value for entry in new for value in entry.values)))
            assert verdict.outcome != "saved" or rule.keep > 1 or verdict.values != verdict.incumbent
            kept[rule.name] = verdict.kept


@settings(often, max_examples=2 * often.max_examples)
@given(cadence(quantities.filter(lambda text: "evaluation" not in text)), cadence(), trainings)
def test_asking_only_when_told_to_finds_the_same(evaluate, checkpoint, training):
    rules = Rules((SavingRule.parse("acc"),), evaluate=evaluate, checkpoint=checkpoint)
    always, seldom = RuleEngine(rules, FACTS), RuleEngine(rules, FACTS)
    for at, ended, observation, _ in training:
        due = always.after_step(at)
        told = seldom.next_step is not None and at.step >= seldom.next_step
        if told or ended or at.elapsed >= seldom.next_elapsed:
            assert seldom.after_step(at) == due
        else:
            assert not due.evaluate
            assert not due.checkpoint
        if observation is not None:
            assert seldom.after_evaluation(observation) == always.after_evaluation(observation)
