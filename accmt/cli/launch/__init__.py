"""`accmt launch` and `accmt strats`: a script on several processes, with a strategy or an Accelerate configuration."""
