"""The rules inside the Trainer of transformers: the same decisions as anywhere, and its own settings made to agree."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import launch

from accmt import load_best
from accmt.checkpoint.stateful import Mismatch
from accmt.config.errors import ConfigError
from accmt.rules import Decision, RuleError, SavingRule

pytest.importorskip("transformers", reason="transformers is not installed")
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.trainer_utils import EvalLoopOutput

from accmt.integrations.transformers import Rules

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("rule_script_of_hosts", HERE.parent / "rules" / "script.py")
script = importlib.util.module_from_spec(_spec)
sys.modules["rule_script_of_hosts"] = script
_spec.loader.exec_module(script)

pytestmark = pytest.mark.filterwarnings("ignore:.*it saves nothing until it is a number:UserWarning")


class Linear(torch.nn.Module):
    """A model that the Trainer can train without being one of transformers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def data(count=8):
    return [{"x": torch.tensor([float(i % 2), 1.0]), "labels": torch.tensor(i % 2)} for i in range(count)]


def bert():
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=4, max_position_embeddings=8))


def words(count=8):
    return [{"input_ids": torch.tensor([i % 8, 1, 2]), "labels": torch.tensor(i % 2)} for i in range(count)]


def reported(columns, datasets=("",)):
    """A compute_metrics that reports the values of the columns, one after the other, whatever the model predicts."""
    calls = iter(range(10**6))

    def compute_metrics(_):
        evaluation, dataset = divmod(next(calls), len(datasets))
        found = {}
        for name, values in columns.items():
            metric, _, on = name.partition("@")
            if on in ("", datasets[dataset]) and values[evaluation] is not None:
                found[metric] = values[evaluation]
        return found

    return compute_metrics


def host(
    folder, rules, compute_metrics=None, evaluated=None, model=None, callbacks=(), train=None, kind=Trainer, **arguments
):
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "eval_strategy": "epoch"}
    settings |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True} | arguments
    return kind(
        model or Linear(),
        TrainingArguments(str(folder / "host"), **settings),
        train_dataset=train or data(),
        eval_dataset=data() if evaluated is None else evaluated,
        compute_metrics=compute_metrics,
        callbacks=[*callbacks, rules],
    )


def decisions(folder):
    return [Decision.from_json(json.loads(line)) for line in (folder / "decisions.jsonl").read_text().splitlines()]


def saves(folder):
    return {
        verdict.rule: [d.progress.evaluation for d in decisions(folder) if verdict.rule in {v.rule for v in d.saved}]
        for verdict in decisions(folder)[0].verdicts
    }


def test_each_rule_saves_its_model(tmp_path):
    rules = Rules(
        tmp_path,
        save=["best_accuracy@dev", "best_valid_loss@test"],
        metrics={"accuracy": "max"},
        datasets=["dev", "test"],
    )
    inner = Tokenizer(WordLevel({"a": 0}, "a"))
    model = bert()
    seen = []

    class Watch(TrainerCallback):
        def on_evaluate(self, *_, model, **__):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})

    trainer = host(
        tmp_path,
        rules,
        reported({"accuracy@dev": [0.5, 0.9, 0.7], "accuracy@test": [0.1, 0.1, 0.1]}, ["dev", "test"]),
        {"dev": words(), "test": words(4)},
        model,
        [Watch()],
        words(),
        learning_rate=1e-2,
    )
    trainer.processing_class = trainer.callback_handler.processing_class = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="a"
    )
    trainer.train()
    assert saves(tmp_path)["best_accuracy@dev"] == [1, 2]
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "best_accuracy@dev")
    assert all(torch.equal(value, seen[3][name]) for name, value in loaded.state_dict().items())
    PreTrainedTokenizerFast.from_pretrained(tmp_path / "best_accuracy@dev")
    about = json.loads((tmp_path / "best_accuracy@dev" / "saving.json").read_text())
    assert about["values"] == {"accuracy@dev": 0.9}
    assert about["step"] == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile
def test_load_best_knows_the_names_under_which_save_pretrained_writes(tmp_path, capfd):
    """Since version 5, those of the weights of a ViT are others than in the model."""
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4, "image_size": 4, "patch_size": 2}

    def vit(labels=2, layers=1):
        config = ViTConfig(num_channels=1, num_labels=labels, num_hidden_layers=layers, **sizes)
        return ViTForImageClassification(config)

    images = [{"pixel_values": torch.full((1, 4, 4), float(i % 2)), "labels": i % 2} for i in range(8)]
    host(tmp_path, Rules(tmp_path), None, images, trained := vit(), (), images, num_train_epochs=1).train()
    for other in vit(labels=3), vit(layers=2):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(Mismatch, match="holds another model; nothing was loaded"):
            load_best(tmp_path, other)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    loaded, compiled, state = vit(), torch.compile(vit()), torch.random.get_rng_state()
    load_best(tmp_path, compiled)
    assert load_best(tmp_path, loaded).rule == "best_valid_loss"
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert "LOAD REPORT" not in capfd.readouterr().err
    assert torch.equal(state, torch.random.get_rng_state())


CASES = [  # all but those with replicates, which the Trainer does not report
    case
    for path in sorted((HERE.parent / "cases").glob("*.rule"))
    for case in script.read(path)
    if not any(" " in name for name in case.series)
]
CLOCKED = ("elapsed", "hour", "minute", "second")


class Scripted(Trainer):
    """A Trainer whose evaluations report given values: metric or metric@dataset -> one for each evaluation."""

    columns: dict
    evaluations = 0
    log_loss = False

    def evaluation_loop(self, *_, metric_key_prefix="eval", **__):
        dataset = metric_key_prefix.removeprefix("eval").removeprefix("_")
        columns = {name.partition("@")[::2]: values for name, values in self.columns.items()}
        found = {name: values[self.evaluations] for (name, on), values in columns.items() if on in ("", dataset)}
        found = {{"valid_loss": "loss"}.get(name, name): float(value) for name, value in found.items()}
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_{k}": v for k, v in found.items()}, 1)

    def log(self, logs, *rest):
        if "loss" in logs and "train_loss" in self.columns:
            logs["loss"] = float(self.columns["train_loss"][self.evaluations])
        super().log(logs, *rest)

    def _evaluate(self, *given, **named):
        result = super()._evaluate(*given, **named)
        self.evaluations += 1
        return result


def verdicts(found):
    """What was decided at each evaluation, up to the stop."""
    made = []
    for decision in found:
        made.append([verdict.to_json() for verdict in decision.verdicts])
        if decision.stop is not None:
            break
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.where} {case.text}")
def test_decisions_are_those_of_the_engine(tmp_path, case):
    """Each script of the language, with its values reported by the evaluations of a real training."""
    if any(word in " ".join([case.text, *case.stop_when]) for word in CLOCKED):
        pytest.skip("the script has its own clock")
    if any("-" in column for column in case.series.values()) or len({*map(len, case.series.values())}) > 1:
        pytest.skip("an evaluation of the Trainer reports all metrics")
    expected = verdicts(case.decisions())
    datasets = list(case.facts().datasets)
    options = {key: int(value) if key == "patience" else value for key, value in case.options.items()}
    rules = Rules(
        tmp_path,
        SavingRule.parse(case.text, **options),
        stop_when=case.stop_when,
        metrics={name: ("max" if greater else "min", list(on)) for name, (greater, on) in case.metrics.items() if on},
        datasets=datasets,
    )
    evaluations = max(map(len, case.series.values()))
    settings = {"num_train_epochs": evaluations, "per_device_train_batch_size": 1, "kind": Scripted}
    settings["eval_strategy"] = "epoch" if datasets else "no"
    sets = dict.fromkeys(datasets, data(1))
    trainer = host(tmp_path, rules, None, sets, train=data(case.epoch_steps), **settings)
    trainer.columns = case.series
    trainer.train()
    assert verdicts(d for d in decisions(tmp_path) if d.verdicts) == expected


def test_a_misspelt_metric_is_an_error_at_once(tmp_path):
    with pytest.raises(RuleError) as caught:
        Rules(tmp_path, save="best_acuracy", metrics={"accuracy": "max"})
    assert str(caught.value) == (
        "unknown metric 'acuracy'\n"
        "    best_acuracy\n"
        "         ^^^^^^^\n"
        "  this training reports: accuracy (0), train_loss, valid_loss (0)\n"
        "  did you mean 'accuracy'?"
    )


def test_a_metric_that_is_not_reported(tmp_path):
    rules = Rules(tmp_path, save="best_f1", metrics={"f1": "max"})
    trainer = host(tmp_path, rules, reported({"f1_score": [0.5]}))
    with pytest.raises(ValueError, match="f1") as caught:
        trainer.train()
    assert str(caught.value) == (
        "the evaluation does not report f1, which Rules(metrics=) declares\n"
        "  it reports: f1_score, valid_loss\n"
        "  compute_metrics has to return it; Rules(names={...}) maps a name that differs"
    )


def test_eval_on_start_finds_it_before_the_first_step(tmp_path):
    rules = Rules(tmp_path, save="best_f1", metrics={"f1": "max"})
    trainer = host(tmp_path, rules, reported({"f1_score": [0.5]}), eval_on_start=True)
    with pytest.raises(ValueError, match="the evaluation does not report f1"):
        trainer.train()


def test_other_names_are_mapped(tmp_path):
    rules = Rules(
        tmp_path,
        save=["best_f1@dev", "best_f1@test"],
        metrics={"f1": "max"},
        datasets=["dev", "test"],
        names={"f1-macro": "f1"},
    )
    columns = {"f1-macro@dev": [0.5, 0.6, 0.4], "f1-macro@test": [0.5, 0.4, 0.6]}
    host(tmp_path, rules, reported(columns, ["dev", "test"]), {"dev": data(), "test": data()}).train()
    assert saves(tmp_path) == {"best_f1@dev": [1, 2], "best_f1@test": [1, 3]}


FIGHTS = [
    (
        {"load_best_model_at_end": True, "save_strategy": "epoch"},
        {},
        "load_best_model_at_end: loads a checkpoint that no rule chose: leave it out, and load the folder of a rule "
        "after the training",
    ),
    (
        {"save_strategy": "best", "metric_for_best_model": "loss"},
        {},
        "metric_for_best_model: chooses beside the rules: leave it out, and EarlyStoppingCallback with it (save= and "
        "patience= do both)\n"
        '  save_strategy: is "best", which the rules decide: "epoch", "steps" or "no" say when to write a checkpoint '
        "to resume from",
    ),
    (
        {"eval_strategy": "no"},
        {},
        'eval_strategy: is "no": set it to "epoch" or "steps", or give evaluate_every to Rules(...), or datasets=[] to '
        "decide by train_loss",
    ),
    (
        {"eval_strategy": "steps", "save_strategy": "epoch", "eval_delay": 2},
        {"evaluate_every": "1 epoch", "checkpoint_every": "1 epoch"},
        'save_strategy: is "epoch", and checkpoint_every says when to write checkpoints: set it to "no"\n'
        '  eval_strategy: is "steps", and evaluate_every says when to evaluate: set it to "no"\n'
        "  eval_delay: has no effect on evaluate_every: write it as '1 epoch after 2 epochs'",
    ),
    ({}, {"datasets": []}, 'eval_strategy: is "epoch", and datasets=[] says that there are none'),
]


@pytest.mark.parametrize(("settings", "given", "text"), FIGHTS, ids=["load_best", "best", "never", "cadences", "none"])
def test_settings_that_contradict_rules_are_refused(tmp_path, settings, given, text):
    with pytest.raises(ConfigError) as caught:
        host(tmp_path, Rules(tmp_path / "model", **given), **settings)
    assert str(caught.value).partition(":\n  ")[2] == text
    assert not (tmp_path / "model").exists()


def test_a_schedule_may_need_a_metric_for_itself(tmp_path):
    rules = Rules(tmp_path)
    host(tmp_path, rules, lr_scheduler_type="reduce_lr_on_plateau", metric_for_best_model="loss").train()
    assert len(decisions(tmp_path)) == 3


def test_datasets_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"eval_dataset|Rules") as caught:
        host(tmp_path, Rules(tmp_path), evaluated={"dev": data()}).train()
    assert str(caught.value) == "eval_dataset is a dictionary: give its keys to Rules(datasets=[...], held_out=[...])"
    with pytest.raises(ValueError, match=r"eval_dataset|Rules") as caught:
        host(tmp_path, Rules(tmp_path, datasets=["dev"])).train()
    assert str(caught.value) == "eval_dataset is one dataset, and Rules(...) names dev: leave datasets out"
    with pytest.raises(ValueError, match=r"eval_dataset|Rules") as caught:
        host(tmp_path, Rules(tmp_path, datasets=["dev"]), evaluated={"test": data(), "dev": data()}).train()
    assert str(caught.value) == "'test' is not among the datasets and held_out of Rules(...), which are: dev"
    with pytest.raises(ValueError, match=r"eval_dataset|Rules") as caught:
        host(tmp_path, Rules(tmp_path, datasets=["dev", "test"]), evaluated={"dev": data()}).train()
    assert str(caught.value) == "the evaluation left out test, named in Rules(...): eval_dataset has no such key"


def test_names_that_are_not_declared(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Rules(tmp_path, metrics={"f1": "max"}, names={"f1-macro": "f2"})
    assert str(caught.value) == (
        "1 mistake in Rules(...):\n  names['f1-macro']: 'f2' is not a declared metric: valid_loss, f1"
    )


def test_several_rules_are_refused(tmp_path):
    both = [Rules(tmp_path / "one"), Rules(tmp_path / "two")]
    with pytest.raises(ValueError, match=r"eval_dataset|Rules") as caught:
        host(tmp_path, both[0], callbacks=both[1:]).train()
    assert str(caught.value) == "there are several Rules among the callbacks: give all saving rules to one of them"


def test_held_out_datasets_are_recorded_and_decide_nothing(tmp_path):
    rules = Rules(tmp_path, "best_accuracy", metrics={"accuracy": "max"}, datasets=["dev"], held_out=["test"])
    columns = {"accuracy@dev": [0.5, 0.6, 0.4], "accuracy@test": [0.1, 0.2, 0.9]}
    host(tmp_path, rules, reported(columns, ["dev", "test"]), {"dev": data(), "test": data()}).train()
    assert saves(tmp_path) == {"best_accuracy": [1, 2]}
    assert rules.best("best_accuracy").step == 4
    assert '"accuracy@test": 0.9' in (tmp_path / "log.jsonl").read_text()


def test_patience_stops_and_nothing_is_evaluated_after(tmp_path):
    rules = Rules(tmp_path, save="best_accuracy", metrics={"accuracy": "max"}, patience=2)
    values = [0.5, 0.4, 0.5, 0.6, 0.7]
    trainer = host(tmp_path, rules, reported({"accuracy": values}), num_train_epochs=5)
    trainer.train()
    assert trainer.state.global_step == 6
    assert [decision.stop is None for decision in decisions(tmp_path)] == [True, True, False]
    assert rules.stop.reason == "best_accuracy has not improved for 2 evaluations"


def test_small_steady_progress_counts_where_early_stopping_sees_none(tmp_path):
    """EarlyStoppingCallback compares each loss with the one before; `by` compares it with what the rule saved last."""
    columns = {"valid_loss": [0.50, 0.49, 0.48, 0.47, 0.46, 0.45, 0.44, 0.43]}
    settings = {"kind": Scripted, "num_train_epochs": 8}
    early = EarlyStoppingCallback(3, 0.02)
    theirs = host(tmp_path / "theirs", early, metric_for_best_model="loss", greater_is_better=False, **settings)
    theirs.columns = columns
    theirs.train()
    rules = Rules(tmp_path / "ours", "best_valid_loss by 0.02", patience=3)
    ours = host(tmp_path / "ours", rules, **settings)
    ours.columns = columns
    ours.train()
    assert theirs.state.global_step == 2 * 4
    assert saves(tmp_path / "ours") == {"best_valid_loss": [1, 4, 7]}
    assert ours.state.global_step == 2 * 8


def test_cadences_say_when_to_evaluate_and_to_checkpoint(tmp_path):
    rules = Rules(tmp_path, evaluate_every="4 steps", checkpoint_every="3 steps")
    trainer = host(tmp_path, rules, eval_strategy="no", num_train_epochs=6)
    trainer.train()
    steps = [d.progress.step for d in decisions(tmp_path)]
    assert steps == [4, 8, 12]
    assert sorted(path.name for path in (tmp_path / "host").glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-9",
    ]


def test_a_condition_on_steps_stops_between_evaluations_with_a_last_one(tmp_path):
    rules = Rules(tmp_path, stop_when="step >= 3")
    trainer = host(tmp_path, rules)
    trainer.train()
    assert trainer.state.global_step == 3
    assert [(d.progress.step, bool(d.verdicts)) for d in decisions(tmp_path)] == [(2, True), (3, False), (3, True)]


def test_train_loss_without_validation_data(tmp_path):
    rules = Rules(tmp_path, save="best_train_loss", datasets=[])
    trainer = host(tmp_path, rules, eval_strategy="no", learning_rate=0.1)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    assert [d.verdicts[0].values for d in decisions(tmp_path)] == [(loss,) for loss in logged]


def test_evaluations_by_hand_decide_nothing(tmp_path):
    rules = Rules(tmp_path)
    trainer = host(tmp_path, rules)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert len(decisions(tmp_path)) == 3


PROGRAM = HERE / "transformers_program.py"
PRELOAD = ("transformers.trainer", "transformers.models.bert.modeling_bert")


def ended(folder, rank=0):
    return json.loads((folder / f"end-{rank}.json").read_text())


def recorded(folder):
    """The decisions without their times, and what the rules keep on the disk."""
    kept = sorted(path.relative_to(folder).as_posix() for path in folder.glob("best_*/**/model.safetensors"))
    return [replace(d, progress=replace(d.progress, elapsed=0)).to_json() for d in decisions(folder)], kept


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    launch(PROGRAM, folder, preload=PRELOAD).check()
    return folder


@pytest.mark.parametrize("restores", [False, True], ids=["as it is", "restore_callback_states_from_checkpoint"])
def test_killed_and_resumed_it_decides_the_same(tmp_path, whole, restores):
    for words in (["kill=8"], ["kill=13", "resume"], ["resume"]):
        ran = launch(PROGRAM, tmp_path, *words, *["restore"] * restores, preload=PRELOAD)
        assert ran.returncode == (-9 if "kill" in words[0] else 0), ran.stderr
    assert recorded(tmp_path) == recorded(whole)
    assert ended(tmp_path) == ended(whole)


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_save_whole_models(tmp_path, whole, sharded):
    words = ["sharded"] * sharded
    launch(PROGRAM, tmp_path, *words, processes=2, preload=PRELOAD, environment={"ACCELERATE_USE_CPU": None}).check()
    ends = [ended(tmp_path, rank) for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0]["stop"] == ended(whole)["stop"]
    assert ends[0]["sharded"] is sharded
    scored = ("best_accuracy@dev", "best_accuracy@dev/accuracy@test")
    assert [saves(tmp_path)[rule] for rule in scored] == [saves(whole)[rule] for rule in scored]
    assert recorded(tmp_path)[1]
    for folder in (path.parent for path in tmp_path.glob("best_*/**/model.safetensors")):
        _, missing = BertForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not any(missing.values())
