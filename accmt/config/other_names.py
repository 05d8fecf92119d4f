"""Names that other libraries, such as Lightning, Keras and transformers, use for arguments of accmt."""

from __future__ import annotations

_ARGUMENTS: dict[str, dict[str, str]] = {
    ", a hyperparameter": {
        "epochs": "epoch n_epochs num_epochs max_epochs num_train_epochs",
        "max_steps": "steps n_steps num_steps total_steps num_train_steps",
        "batch_size": "bs train_batch_size per_device_train_batch_size eval_batch_size per_device_eval_batch_size",
        "optimizer": "optim opt optimizers optimizer_type optimizer_name",
        "optim_kwargs": "optimizer_kwargs optim_args optimizer_args optimizer_params",
        "scheduler": "sched lr_scheduler lr_scheduler_type scheduler_type",
        "scheduler_kwargs": "lr_scheduler_kwargs scheduler_args scheduler_params",
        "step_scheduler_per_epoch": "",
    },
    ", an argument of the optimizer": {
        "lr": "learning_rate",
        **dict.fromkeys(("weight_decay", "momentum", "betas", "eps", "no_decay", "fused", "foreach"), ""),
    },
    ", an argument of Trainer": {
        "model_path": "output_dir default_root_dir save_dir checkpoint_dir",
        "callback": "callbacks",
        "clip_grad": "gradient_clip_val max_grad_norm grad_clip clipnorm",
        "collate_fn": "data_collator",
        "evaluate_every": "eval_steps val_check_interval",
        "grad_accumulation_steps": "accumulate_grad_batches gradient_accumulation_steps",
        "log_every": "logging_steps log_every_n_steps",
        "log_with": "logger loggers report_to",
        "mixed_precision": "precision fp16 bf16",
        "patience": "early_stopping_patience",
        "restore_best": "load_best_model_at_end restore_best_weights",
        "resume": "resume_from_checkpoint ckpt_path",
    },
    ", a variable of the environment, without which a GPU is used if there is one": {
        "ACCELERATE_USE_CPU": "device devices cpu use_cpu no_cuda",
    },
    ", an argument of fit": {
        "train_dataset": "train_data train_dataloader train_dataloaders",
        "val_dataset": "eval_dataset validation_data val_dataloader val_dataloaders",
        "loss_fn": "loss criterion",
    },
}

MEANT: dict[str, tuple[str, str]] = {
    name: (argument, place)
    for place, arguments in _ARGUMENTS.items()
    for argument, names in arguments.items()
    for name in (argument, *names.split())
}
"""Name -> the argument of accmt, and where it belongs, to continue a sentence."""
