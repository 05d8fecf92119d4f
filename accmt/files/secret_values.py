"""Secrets in settings and command lines, replaced by `***` where these are written down."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from accmt.rules.printable import shown

_SHORTEST = 4  # of what may be a secret: others are choices such as "min"
_SHORTEST_VARIABLE = 8
# `token` and `key` are whole words, also in apiToken; not a token of a vocabulary, nor a loss per token.
_TEXTS = "".join(rf"(?<!{kind}[-_.])" for kind in ("pad", "bos", "eos", "unk", "cls", "sep", "mask", "image", "per"))
_BEGIN = rf"(?:(?<![a-z]){_TEXTS}|(?-i:(?=[TK][a-z]))|(?<=api)|(?<=auth)|(?<=access)|(?<=hf))"
_SURE = rf"secret|passw|passphrase|credential|api[-_]?key|{_BEGIN}token(?![a-z])"
_KINDS = rf"(?:{_SURE}|[-_.]pwd|{_BEGIN}key(?![a-z]))"
_NAMED = re.compile(_KINDS, re.IGNORECASE)
_OPTION = re.compile(rf"-[\w.-]*{_KINDS}[\w.-]*", re.IGNORECASE)
_LOGIN = re.compile(r"[^\s/@:='\"]+:[^\s/@'\"]+@(?=[\w-]+\.[\w.-]+|[\w-]+:\d|localhost)")  # of an address without ://
_GIVEN = re.compile(rf"({_KINDS}[\w.-]{{0,99}}['\"]?\s?[=:]\s?['\"]?)[^\s'\",}}]+", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Return whether a value of this name is a secret, whatever it is."""
    return re.search(_SURE, name, re.IGNORECASE) is not None


def without_secrets(value: Any, name: str = "") -> Any:
    """Mask the secrets in JSON: texts with a name such as `api_key`, and what follows such a name within a text or in a
    list of arguments; passwords and tokens of URLs; and values of environment variables with such names."""
    if isinstance(value, Mapping):
        return {key: without_secrets(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list):
        return [
            without_secrets(item, before if _OPTION.fullmatch(before) and not str(item).startswith("--") else name)
            for before, item in zip(["", *map(str, value)], value, strict=False)
        ]
    if not isinstance(value, str):
        return value
    secrets = [text for key, text in os.environ.items() if len(text) >= _SHORTEST_VARIABLE and _NAMED.search(key)]
    for secret in sorted(secrets, key=len, reverse=True):  # one may contain another
        value = value.replace(secret, "***")
    if _NAMED.search(name) and len(value) >= _SHORTEST:
        return "***"
    return _GIVEN.sub(r"\1***", _LOGIN.sub("", shown(value)))
