"""Catalogue of classes to choose by name: the optimizers, or the schedulers.

A choice is one of the names, a class of the right kind, the dotted name of such a class, or a factory: a callable
that takes the parameters (or the optimizer) first, followed by keyword arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from accmt.config.errors import ConfigError, Problem, did_you_mean, must_be

Factory = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Allowed choices: `entries` by name, and any subclass of `base`. `noun` and `subject` are used in errors."""

    noun: str
    base: type
    base_name: str
    subject: str
    entries: Mapping[str, Factory]

    @classmethod
    def of(cls, noun: str, base: type, base_name: str, subject: str, holder: type) -> Catalogue:
        """Build a catalogue from the public attributes of `holder`, such as `Optimizer`."""
        entries = {name: getattr(holder, name) for name in vars(holder) if not name.startswith("_")}
        return cls(noun, base, base_name, subject, entries)

    def resolve(self, choice: object) -> Factory:
        """Return the class or factory that was chosen; raise ValueError if it is not allowed."""
        if isinstance(choice, str):
            return self._by_name(choice)
        if isinstance(choice, self.base):
            raise ValueError(f"must be the class {type(choice).__name__}, not an instance of it; the trainer builds it")
        if not callable(choice) or not self._fits(choice):
            raise ValueError(must_be(self.wanted, choice))
        return choice

    def name_of(self, choice: object) -> str:
        """Return the catalogue's name if there is one, else the qualified name, which `resolve` accepts for a class."""
        factory = self.resolve(choice)
        return self._known_name(factory) or qualified_name(factory)

    def title_of(self, choice: object) -> str:
        """Return the short name, for error messages."""
        factory = self.resolve(choice)
        return self._known_name(factory) or str(getattr(_unwrapped(factory), "__name__", type(factory).__name__))

    def build(self, choice: object, place: str, *arguments: Any, **keywords: Any) -> Any:
        """Call the class or factory that was chosen.

        Raises:
            ConfigError: If torch rejects the arguments, which were given at `place`, or if something else is returned.
                An error of the user's own factory is kept.
        """
        try:
            built = self.resolve(choice)(*arguments, **keywords)
        except (TypeError, ValueError, KeyError) as error:
            if not self._is_known(choice):
                raise
            raise ConfigError([Problem(place, f"{self.title_of(choice)} rejects them: {error}")]) from error
        if not isinstance(built, self.base):
            raise ConfigError([Problem(self.noun, must_be(f"a factory of a {self.base_name}", built))])
        return built

    def _is_known(self, choice: object) -> bool:
        """Return whether it is in the catalogue or from torch: if it raises, the arguments must be wrong."""
        factory = self.resolve(choice)
        of_torch = isinstance(factory, type) and factory.__module__.startswith("torch.")
        return of_torch or self._known_name(factory) is not None

    @property
    def wanted(self) -> str:
        """Description of the allowed choices."""
        return f"the name of {self._article} {self.noun}, {self._others}"

    @property
    def _others(self) -> str:
        return f"a subclass of {self.base_name}, or a callable ({self.subject}, **arguments) that returns one"

    @property
    def _article(self) -> str:
        return "an" if self.noun[0] in "aeiou" else "a"

    def _by_name(self, name: str) -> Factory:
        if name in self.entries:
            return self.entries[name]
        if "." in name:
            return self._by_dotted_name(name)
        raise ValueError(
            f"unknown {self.noun} {name!r}{did_you_mean(name, self.entries)} "
            f"Allowed are {', '.join(self.entries)}, {self._others}"
        )

    def _by_dotted_name(self, name: str) -> Factory:
        """Return a class from a module already imported: naming a module in a configuration must not run its code."""
        module_name, _, attribute = name.rpartition(".")
        module = sys.modules.get(module_name)
        if module is None:
            raise ValueError(f"{name!r} is not in an imported module; import {module_name} first, or give the class")
        found = getattr(module, attribute, None)
        if not isinstance(found, type) or not issubclass(found, self.base) or found is self.base:
            raise ValueError(f"{name!r} is not a subclass of {self.base_name}")
        return found

    def _known_name(self, factory: Factory) -> str | None:
        return next((name for name, entry in self.entries.items() if entry is factory), None)

    def _fits(self, factory: object) -> bool:
        """Return False for the holder itself, the abstract base, and classes of the other catalogue."""
        if not isinstance(factory, type):
            return True
        return issubclass(factory, self.base) and factory is not self.base


def qualified_name(thing: object) -> str:
    """Return the module and name of a class or function; for any other object, of its class."""
    if isinstance(thing, partial):
        return f"functools.partial({qualified_name(thing.func)})"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _unwrapped(factory: object) -> object:
    return _unwrapped(factory.func) if isinstance(factory, partial) else factory
