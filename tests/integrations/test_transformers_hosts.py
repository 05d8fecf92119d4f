"""The trainers that are built on the one of transformers: each trains, and the rules save what its users load."""

import json

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from accmt.integrations.transformers import Rules

COMMON = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "eval_strategy": "epoch", "save_strategy": "no"}
COMMON |= {"report_to": [], "disable_tqdm": True, "use_cpu": True}
WORDS = ["[PAD]", "[UNK]", "[EOS]", "a", "good", "bad", "film", "book"]


def tokenizer():
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")


def last_values(folder):
    return json.loads((folder / "history.jsonl").read_text().splitlines()[-1])["values"]


def test_seq2seq_trainer_with_generation(tmp_path):
    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    samples = [{"input_ids": torch.tensor([3, 4, i % 2 + 6]), "labels": torch.tensor([i % 2 + 4, 2])} for i in range(4)]
    rules = Rules(tmp_path, "best_length", metrics={"length": "max"})
    Seq2SeqTrainer(
        T5ForConditionalGeneration(config),
        Seq2SeqTrainingArguments(str(tmp_path / "host"), predict_with_generate=True, generation_max_length=8, **COMMON),
        train_dataset=samples,
        eval_dataset=samples,
        compute_metrics=lambda generated: {"length": generated.predictions.shape[1]},
        callbacks=[rules],
    ).train()
    assert last_values(tmp_path)["0"]["length"] > 2  # of what was generated: the targets have two
    T5ForConditionalGeneration.from_pretrained(rules.best("best_length").folder)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL sets it itself
def test_sft_trainer_reports_token_accuracy(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=16))
    texts = datasets.Dataset.from_dict({"text": ["a good film", "a bad book"] * 2})
    rules = Rules(
        tmp_path,
        ["best_mean_token_accuracy@films", "best_valid_loss@books"],
        metrics={"mean_token_accuracy": "max"},
        datasets=["films", "books"],
    )
    trl.SFTTrainer(
        model,
        trl.SFTConfig(str(tmp_path / "host"), **COMMON),
        train_dataset=texts,
        eval_dataset={"films": texts, "books": texts},
        processing_class=tokenizer(),
        callbacks=[rules],
    ).train()
    assert last_values(tmp_path)["films"].keys() == {"mean_token_accuracy", "valid_loss"}
    folder = rules.best("best_mean_token_accuracy@films").folder
    LlamaForCausalLM.from_pretrained(folder)
    assert PreTrainedTokenizerFast.from_pretrained(folder).decode([4]) == "good"


def test_sentence_transformer_trainer_with_an_evaluator(tmp_path):
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for part in (BertModel(BertConfig(**sizes, intermediate_size=8, max_position_embeddings=16)), tokenizer()):
        part.save_pretrained(tmp_path / "base")
    model = st.SentenceTransformer(str(tmp_path / "base"), device="cpu")
    first, second = ["a good film", "a bad book", "a good book", "a bad film"], ["good", "bad", "bad", "good"]
    pairs = datasets.Dataset.from_dict({"first": first, "second": second, "score": [1.0, 0.9, 0.1, 0.2]})
    rules = Rules(
        tmp_path / "model",
        ["best_spearman", "best_valid_loss"],
        metrics={"spearman": "max"},
        names={"sts_spearman_cosine": "spearman"},
    )
    st.SentenceTransformerTrainer(
        model,
        st.SentenceTransformerTrainingArguments(str(tmp_path / "host"), **COMMON),
        train_dataset=pairs,
        eval_dataset=pairs,
        loss=CosineSimilarityLoss(model),
        evaluator=EmbeddingSimilarityEvaluator(first, second, [1.0, 0.9, 0.1, 0.2], name="sts"),
        callbacks=[rules],
    ).train()
    assert last_values(tmp_path / "model")["0"].keys() == {"spearman", "valid_loss"}
    loaded = st.SentenceTransformer(str(rules.best("best_spearman").folder), device="cpu")
    assert loaded.encode("a film").shape == (8,)
