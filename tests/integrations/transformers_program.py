"""A training by the Trainer of transformers, whose evaluations report values that depend on the step alone.

FOLDER [kill=STEP] [resume] [restore] [sharded] [epochs=N]
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from accmt.integrations.transformers import Rules

folder = Path(sys.argv[1])
options = dict(word.partition("=")[::2] for word in sys.argv[2:])
VALUES = {"dev": [0.2, 0.4, 0.3, 0.5, 0.5, 0.4, 0.5, 0.3], "test": [0.5, 0.4, 0.6, 0.4, 0.7, 0.7, 0.6, 0.5]}
FSDP = {"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"], "state_dict_type": "FULL_STATE_DICT"}


class Scripted(Trainer):
    def evaluation_loop(self, *arguments, metric_key_prefix="eval", **given):
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **given)
        values = VALUES[metric_key_prefix.removeprefix("eval_")]
        output.metrics[f"{metric_key_prefix}_accuracy"] = values[self.state.global_step // 2 - 1]
        return output


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **parts):
        if state.global_step == int(options.get("kill", -1)):
            os.kill(os.getpid(), signal.SIGKILL)


def samples(count):
    return [{"input_ids": torch.tensor([i % 8, 1, 2]), "labels": torch.tensor(i % 2)} for i in range(count)]


torch.manual_seed(0)
sizes = {"vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=4, max_position_embeddings=8))
args = TrainingArguments(
    str(folder / "host"),
    num_train_epochs=int(options.get("epochs", 4)),
    per_device_train_batch_size=2,
    eval_strategy="no",
    save_strategy="no",
    learning_rate=1e-2,
    restore_callback_states_from_checkpoint="restore" in options,
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
    **({"fsdp": True, "fsdp_config": FSDP} if "sharded" in options else {}),
)
if "sharded" in options:
    assert args.device.type == "cpu"
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # Accelerate shards on GPUs alone
rules = Rules(
    folder,
    ["best_accuracy@dev", "best_accuracy@dev/accuracy@test", "best_valid_loss@dev keep 2", "best_train_loss"],
    patience={"best_accuracy@dev": 4, "best_accuracy@dev/accuracy@test": 3},
    metrics={"accuracy": "max"},
    datasets=["dev", "test"],
    evaluate_every="2 steps",
    checkpoint_every="3 steps",
)
world = int(os.environ.get("WORLD_SIZE", 1))
trainer = Scripted(
    model,
    args,
    train_dataset=samples(8 * world),
    eval_dataset={"dev": samples(4), "test": samples(6)},
    callbacks=[rules, Kill()],
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(folder / "host") if "resume" in options else None)
end = {
    "step": trainer.state.global_step,
    "stop": rules.stop and rules.stop.reason,
    "model": type(trainer.model).__name__,
}
rank = int(os.environ.get("RANK", 0))
(folder / f"end-{rank}.json").write_text(
    json.dumps(end | {"sharded": hasattr(next(model.parameters()), "device_mesh")})
)
