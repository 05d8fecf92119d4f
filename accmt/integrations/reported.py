"""What another trainer reports, by the names that the rules use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from accmt.config.errors import Problem, must_be, raise_problems
from accmt.integrations.arguments import Declaration
from accmt.rules import SavingRule
from accmt.rules.errors import listed
from accmt.rules.replicated import asks_for_errors
from accmt.rules.store import ONLY_DATASET, VALID_LOSS

_NO_SCORES = (
    "needs a score for each sample, and metrics are single numbers here: write an amount, such as by 0.01 or by 1%, "
    "or use accmt.Trainer or accmt.integrations.loop"
)


class Names:
    """Reported names of metrics, and their names in rules.

    Args:
        names: Metrics that are reported under another name, as reported name -> declared name.
        declared: What the rules were given.
        prefixes: What the trainer puts before the names of validation metrics.
        numbers_only: A metric is one number, so that rules with `by 2 se` cannot be used.

    Raises:
        ConfigError: A name is not that of a declared metric, or a rule needs a score for each sample.
    """

    def __init__(
        self, names: Any, declared: Declaration, prefixes: tuple[str, ...] = (), *, numbers_only: bool = True
    ) -> None:
        if not isinstance(names, Mapping | None):
            raise_problems([Problem("names", must_be('a dictionary such as {"f1-macro": "f1"}', names))], "Rules(...)")
        self._declared, self._prefixes = declared, prefixes
        given = {self._plain(str(reported)): name for reported, name in (names or {}).items()}
        metrics = [VALID_LOSS, *declared.metrics]
        text = f"is not a declared metric: {listed(metrics)}"
        problems = [Problem(f"names[{old!r}]", f"{new!r} {text}") for old, new in given.items() if new not in metrics]
        if numbers_only:
            problems += [Problem("save", f"'{rule.text}' {_NO_SCORES}") for rule in _with_errors(declared)]
        raise_problems(problems, "Rules(...)")
        self._names = {"loss": VALID_LOSS, **given}

    def values(self, dataset: str, reported: Mapping[str, Any], how: str) -> dict[str, Any]:
        """Return the values of the declared metrics on a dataset, by their names in rules.

        Args:
            dataset: The name of the dataset.
            reported: Reported name -> value.
            how: What makes the trainer report a metric, for the error.

        Raises:
            ValueError: A declared metric was not reported.
        """
        found = {self._names.get(self._plain(name), self._plain(name)): value for name, value in reported.items()}
        declared = [name for name, (_, on) in self._declared.metrics.items() if on is None or dataset in on]
        if missing := [name for name in declared if name not in found]:
            raise ValueError(_missing(missing, dataset, found, how))
        return {name: found[name] for name in (*declared, VALID_LOSS) if name in found}

    def _plain(self, name: str) -> str:
        for prefix in self._prefixes:
            name = name.removeprefix(prefix)
        return name


def _with_errors(declared: Declaration) -> list[SavingRule]:
    return [rule for rule in declared.rules.savings if asks_for_errors(rule)]


def _missing(missing: list[str], dataset: str, found: Iterable[str], how: str) -> str:
    on = "" if dataset == ONLY_DATASET else f" on '{dataset}'"
    return (
        f"the evaluation{on} does not report {listed(missing)}, which Rules(metrics=) declares\n"
        f"  it reports: {listed(sorted(found)) or 'nothing'}\n"
        f"  {how}; Rules(names={{...}}) maps a name that differs"
    )
