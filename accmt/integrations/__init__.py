"""The rules of accmt in loops and trainers of others. Nothing here is imported unless it is used.

    loop.Rules            loops by hand, and the core of all others
    transformers.Rules    the Trainer of transformers, and those of TRL and sentence-transformers
    lightning.Rules       a callback of Lightning's Trainer
    ignite.Rules          attached to the engines of Ignite
    keras.Rules           a callback of Keras

The hosts call `loop.Rules` with what they observe and a function that writes a model; it decides, keeps the journals,
and publishes what rules save.
"""
