"""`accmt checkpoints`: the contents of a training's folder, and whether they can be trusted."""
