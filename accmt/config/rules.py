"""Section `rules` of a configuration: the rules that a trainer accepts in Python, as text in a file.

rules:
  save:
    - best_accuracy@dev
    - {rule: best_valid_loss by 1%, name: lowest, patience: 5, saving_below: 0.5}
  checkpoint_every: 500 steps or 10 minutes
  evaluate_every: 500 steps
  stop_when: [valid_loss < 0.1, elapsed > 2 hours]
  held_out: test
  replicates: 500
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from accmt.config.errors import ConfigError, Problem, must_be, unknown_key
from accmt.config.kinds import TEXT, Kind, is_number, is_whole
from accmt.rules import CadenceRule, RuleError, SavingRule, StopCondition

KEYS = ("save", "checkpoint_every", "evaluate_every", "stop_when", "held_out", "replicates")
HELD_OUT = Kind(
    "the key of a dataset, or a list of keys",
    lambda value: all(TEXT.fits(key) or is_whole(key, 0) for key in (value if _is_list(value) else [value])),
).or_none()
REPLICATES_DEFAULT = 200
REPLICATES = Kind("a whole number from 20 to 10,000", lambda value: is_whole(value, 20) and value <= 10_000)
# The rule checks what its arguments contain.
_KINDS = {
    **dict.fromkeys(("rule", "name"), Kind("a string", lambda value: isinstance(value, str))),
    "patience": Kind("a whole number from 1", is_whole),
    **dict.fromkeys(("saving_below", "saving_above"), Kind("a number", is_number)),
}
RULE_KEYS = tuple(_KINDS)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RuleSection:
    """Rules of a file.

    Attributes:
        savings: The saving rules, in order.
        stop_when: The conditions that stop the training.
        evaluate: How often to evaluate, None if not given.
        checkpoint: How often to checkpoint, None if not given or never.
        says_checkpoint: Whether the file has `checkpoint_every`; its value null means never.
        held_out: The keys of held-out datasets, as text.
        replicates: The number of resamples for standard errors, None if not given.
    """

    savings: tuple[SavingRule, ...] = ()
    stop_when: tuple[StopCondition, ...] = ()
    evaluate: CadenceRule | None = None
    checkpoint: CadenceRule | None = None
    says_checkpoint: bool = False
    held_out: tuple[str, ...] = ()
    replicates: int | None = None


def read_rules(section: Mapping[Any, Any], source: str = "the configuration") -> RuleSection:
    """Read the rules of a section as in `Config.rules`.

    Raises:
        ConfigError: With every mistake and its place, such as `rules.save[1].patience`.
    """
    reader = _Reader()
    rules = reader.section(section)
    if reader.problems:
        raise ConfigError(reader.problems, source)
    return rules


def rule_problems(section: Mapping[Any, Any]) -> list[Problem]:
    """Return the problems of the rules of a section."""
    reader = _Reader()
    reader.section(section)
    return reader.problems


class _Reader:
    """Reads a section and collects its problems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def section(self, section: Mapping[Any, Any]) -> RuleSection:
        self._no_other_keys(section, KEYS, "rules")
        saved = [self._saving(place, entry) for place, entry in _entries(section.get("save"), "rules.save")]
        checkpoint = self._cadence(section, "checkpoint_every", CadenceRule.parse)
        evaluate = self._cadence(section, "evaluate_every", partial(CadenceRule.parse, evaluates=True))
        stops = [
            self._parsed(StopCondition.parse, entry, place)
            for place, entry in _entries(section.get("stop_when"), "rules.stop_when")
        ]
        self.problems += HELD_OUT.problems("rules.held_out", section.get("held_out"))
        replicates = section.get("replicates")
        self.problems += REPLICATES.or_none().problems("rules.replicates", replicates)
        return RuleSection(
            savings=tuple(rule for rule in saved if rule is not None),
            stop_when=tuple(stop for stop in stops if stop is not None),
            evaluate=evaluate,
            checkpoint=checkpoint,
            says_checkpoint="checkpoint_every" in section,
            held_out=keys_of(section.get("held_out")),
            replicates=replicates,
        )

    def _saving(self, place: str, entry: Any) -> SavingRule | None:
        """Read a saving rule: its text, or a mapping with the text and other arguments."""
        if not isinstance(entry, Mapping):
            return self._parsed(SavingRule.parse, entry, place, "a string, or a mapping with 'rule'")
        found = len(self.problems)
        self._no_other_keys(entry, RULE_KEYS, place)
        if "rule" not in entry:
            self._wrong(f"{place}.rule", "missing. Write the rule, such as 'rule: best_valid_loss'")
        for key in RULE_KEYS:
            if key in entry and (entry[key] is not None or key == "rule"):
                self.problems += _KINDS[key].problems(f"{place}.{key}", entry[key])
        if not isinstance(entry.get("rule"), str):
            return None
        sound = len(self.problems) == found
        arguments = {key: entry[key] for key in RULE_KEYS[1:] if sound and key in entry}
        return self._parsed(lambda text: SavingRule.parse(text, **arguments), entry["rule"], place)

    def _cadence(self, section: Mapping[Any, Any], key: str, parse: Callable[[str], CadenceRule]) -> CadenceRule | None:
        return None if section.get(key) is None else self._parsed(parse, section[key], f"rules.{key}")

    def _parsed(self, parse: Callable[[str], _T], text: Any, place: str, wanted: str = "a string") -> _T | None:
        if not isinstance(text, str):
            self._wrong(place, must_be(wanted, text))
            return None
        try:
            return parse(text)
        except RuleError as error:
            self.problems += [Problem(place, _indented(problem)) for problem in error.problems]
            return None

    def _no_other_keys(self, mapping: Mapping[Any, Any], allowed: tuple[str, ...], place: str) -> None:
        for key in mapping:
            if key not in allowed:
                self._wrong(f"{place}.{key}", unknown_key(key, allowed))

    def _wrong(self, place: str, text: str) -> None:
        self.problems.append(Problem(place, text))


def keys_of(given: Any) -> tuple[str, ...]:
    """Return keys of datasets, of which one, several or none may be given, as text."""
    return tuple(dict.fromkeys(map(str, given if _is_list(given) else () if given is None else (given,))))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _indented(problem: object) -> str:
    """Return the message of a problem, indented after its first line."""
    return str(problem).replace("\n", "\n  ")


def _entries(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a list with their places; any other value is a single entry."""
    if isinstance(value, list | tuple):
        yield from ((f"{place}[{index}]", entry) for index, entry in enumerate(value))
    elif value is not None:
        yield place, value
