"""From the arguments of `Trainer` and `fit` to a run: checks, options, the model made ready, resume."""
