"""From the arguments of `Trainer` and `fit` to a run: checks, options, preparing the model, resuming."""
