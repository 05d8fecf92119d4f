"""The search for good hyperparameters with Optuna: what to try is declared, every trial is a training of its own.

    search = HyperParameterSearch(Classifier, train_dataset, val_dataset, metrics=[accuracy])
    search.set_parameters(learning_rate=[1e-5, 1e-3], train_batch_size=[8, 16, 32], epochs=3)
    study = search.optimize(objective="best_accuracy", n_trials=20, storage="sqlite:///search.db", study_name="first")

`space` knows what was declared, and `declaration` reads it; `objective` says what a trial is worth; `study` is the
only room that talks to Optuna; `trial` trains once, and `agreement` lets all processes end it alike; `run` goes from
trial to trial, `summary` words what is shown, and `search` has the documented methods.
"""

from accmt.hp_search.search import HyperParameterSearch

__all__ = ["HyperParameterSearch"]
