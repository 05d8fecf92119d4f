"""Search for good hyperparameters with Optuna: declare what to try; every trial is a separate training.

    search = HyperParameterSearch(Classifier, train_dataset, val_dataset, metrics=[accuracy])
    search.set_parameters(learning_rate=[1e-5, 1e-3], train_batch_size=[8, 16, 32], epochs=3)
    study = search.optimize(objective="best_accuracy", n_trials=20, storage="sqlite:///search.db", study_name="first")

`space` holds what was declared, and `declaration` parses it; `objective` defines the value of a trial; `study` is the
only module that uses Optuna; `trial` runs one training, and `agreement` makes all processes end it in the same way;
`run` loops over the trials, `summary` formats the output, and `search` has the documented methods.
"""

from accmt.hp_search.search import HyperParameterSearch

__all__ = ["HyperParameterSearch"]
