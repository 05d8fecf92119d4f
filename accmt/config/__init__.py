"""Configurations as they are written: YAML files, the section of rules, and the words for what is wrong with them.

Nothing here imports torch: the command line reads rules with it.
"""
