"""Reading of a configuration file, and of its top-level mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accmt.config.errors import ConfigError, Problem, must_be
from accmt.config.yaml_text import MAX_BYTES, YamlError, read_yaml


def read_document(path: str | os.PathLike[str]) -> Mapping[Any, Any]:
    """Read the top-level mapping of a YAML file.

    Raises:
        ConfigError: The file cannot be read, or is not a mapping; the error names the file.
    """
    name = os.fsdecode(path)
    if "\n" in name:
        text = (
            "must be the path of a YAML file or a dict, not the text of a file. Read it with yaml.safe_load, or save it"
        )
        raise ConfigError([Problem("", text)], "hps_config")
    value = _value(name)
    if value is None:
        raise ConfigError([Problem("", "the file is empty. It needs the hyperparameters, such as 'epochs: 1'")], name)
    if not isinstance(value, Mapping):
        wanted = "a mapping with hps and rules, or with the hyperparameters"
        raise ConfigError([Problem("", f"the file {must_be(wanted, value)}")], name)
    return value


def rules_of(document: Mapping[Any, Any]) -> tuple[dict[Any, Any], list[Problem]]:
    """Return the section `rules` of a document as written, {} if missing, and a problem if it is not a mapping."""
    section = document.get("rules")
    if section is not None and not isinstance(section, Mapping):
        return {}, [Problem("rules", must_be("a mapping", section))]
    return dict(section or {}), []


def _value(name: str) -> Any:
    try:
        with open(os.path.expanduser(name), "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise YamlError(f"is larger than {MAX_BYTES:,} bytes")
        return read_yaml(content.decode("utf-8-sig"))
    except FileNotFoundError:
        text = f"no such file (the current folder is {os.getcwd()})"
    except IsADirectoryError:
        text = "it is a directory. Give the YAML file in it"
    except UnicodeDecodeError:
        text = "the file is not text in UTF-8"
    except YamlError as error:
        text = f"the file {error}"
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        text = f"the file cannot be read: {error}"
    raise ConfigError([Problem("", text)], name)
