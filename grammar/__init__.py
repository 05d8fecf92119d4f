"""The grammar of the rule language, shipped with the package as data."""
