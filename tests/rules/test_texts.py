"""Texts of unknown origin are made fit to be seen, and addresses lose what is secret in them."""

import sys
import unicodedata

import pytest

from accmt.rules import RuleError, SavingRule
from accmt.rules.printable import escaped, masked, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nb\tc\x7f", r"a\r\nb\tc\x7f"),
        ("\u202eevil\u2066\u200f", r"\u202eevil\u2066\u200f"),
        ("\u2028\u2029\ud800\ufeff", r"\u2028\u2029\ud800\ufeff"),
        ("größe 損失 👩\u200d👧 a\u00a0b [bold]x[/bold]", "größe 損失 👩\u200d👧 a\u00a0b [bold]x[/bold]"),
        (OSError(5, "\x1b"), "[Errno 5] \\x1b"),
    ],
)
def test_what_would_steer_a_terminal_is_written(text, expected):
    assert escaped(text) == expected
    assert escaped(escaped(text)) == expected


def test_no_character_gets_through():
    steering = [chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) in ("Cc", "Cs", "Zl", "Zp")]
    assert all(character not in escaped(f"a{character}b") for character in steering)
    assert escaped("a\n\x1b\nb", lines=True) == "a\n\\x1b\nb"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:secret@host:5000/a", "http://host:5000/a"),
        ("http://secret@host", "http://host"),
        ("http://me:se/cret@host:1/x", "http://host:1/x"),
        ("http://me:se@cret@host/x@y", "http://host/x@y"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("pg://me:secret@h/d?password=secret&ssl=on", "pg://h/d?password=***&ssl=on"),
        ("at 'http://me:secret@h', and http://x/?a=1&api_key=secret.", "at 'http://h', and http://x/?a=1&api_key=***"),
        ("no address: me:secret@h", "no address: me:secret@h"),
    ],
)
def test_addresses_lose_what_is_secret(text, expected):
    assert masked(text) == expected
    assert masked(masked(text)) == expected
    assert shown(f"{text}\x1b") == f"{expected}\\x1b" or text.endswith(".")


def test_mistakes_in_rules_are_shown_so():
    with pytest.raises(RuleError) as caught:
        SavingRule.parse("best_\x1b[2J\u202ex")
    assert escaped(str(caught.value), lines=True) == str(caught.value)
