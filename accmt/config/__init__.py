"""Configurations as written: YAML files, their `rules` section, and error messages for both.

Nothing here imports torch, because the command line reads rules with it.
"""
