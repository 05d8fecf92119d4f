"""State that no checkpoint can hold: plain attributes that a callback's or module's code changes during training.

Found by analysing the code: a method called in every step or epoch assigns or mutates `self.x`, and such a method
reads the value of an earlier call. An attribute assigned before it is read in the same call carries nothing over.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from accmt.callbacks import HOOKS, Callback
from accmt.checkpoint.extra_state import ExtraState
from accmt.checkpoint.object_state import has_state
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule

_ONCE = ("on_fit_start", "on_fit_end", "on_resume", "on_keyboard_interrupt")
_ROOTS = {
    True: ("training_step", "validation_step", "forward"),
    False: tuple(name for name in HOOKS if name not in _ONCE and not name.endswith(("error", "exception", "memory"))),
}
_SET_BY_TRAINER = frozenset({"module", "trainer", "state", "model", "teacher", "device", "accelerator", "tracker"})
_CHANGING = frozenset(
    ["append", "appendleft", "extend", "insert", "add", "update", "pop", "popleft", "remove", "discard", "setdefault"]
)


def unsaved(module: Any, callbacks: Sequence[Any], kept: ExtraState) -> list[str]:
    """Return a warning that names the attributes, or nothing if there are none."""
    covered = kept.found()
    known = {way.partition(".")[0] for way in (*covered.networks, *covered.loose, *covered.stateful)}
    names = [] if "module" in kept.objects() else [n for n in _carried(module, True) if n not in known]
    listed = [f"{type(module).__name__}.{name}" for name in names]
    for callback in callbacks:
        if not has_state(callback) and not type(callback).__module__.startswith("accmt."):
            listed += [f"{type(callback).__name__}.{name}" for name in _carried(callback, False)]
    if not listed:
        return []
    those = ", ".join(dict.fromkeys(listed))
    return [
        f"changed during the training, but not saved in checkpoints: {those}. A resumed training starts with their "
        f"initial values; to keep the changes, give the class state_dict() and load_state_dict(state)"
    ]


def _carried(owner: Any, is_module: bool) -> list[str]:
    """Return the attributes whose values carry over from one call of a method to the next."""
    read: set[str] = set()
    changed: dict[str, None] = {}
    for function in _methods(type(owner), _ROOTS[is_module]):
        uses = _Uses.of(function)
        read |= uses.read_first
        changed |= dict.fromkeys(uses.changed)
    return [name for name in changed if name in read and name not in _SET_BY_TRAINER and not _is_network(owner, name)]


def _is_network(owner: Any, name: str) -> bool:
    if isinstance(inspect.getattr_static(owner, name, None), property):
        return True  # not evaluated: before the training a property may fail
    value = getattr(owner, name, None)
    return isinstance(value, nn.Module) or has_state(value)


def _methods(kind: type, roots: Sequence[str]) -> Iterator[Callable[..., Any]]:
    """Yield the user's methods that a training calls, and the methods that those call on self."""
    seen: set[str] = set()
    names = list(roots)
    while names:
        name = names.pop()
        function = inspect.unwrap(found) if callable(found := getattr(kind, name, None)) else None
        if name in seen or not inspect.isfunction(function) or _is_ours(kind, name):
            continue
        seen.add(name)
        yield function
        names += _Uses.of(function).called


def _is_ours(kind: type, name: str) -> bool:
    owner = next((one for one in kind.__mro__ if name in vars(one)), None)
    return owner in (Callback, AcceleratorModule, ExtendedAcceleratorModule, nn.Module)


class _Uses(ast.NodeVisitor):
    """Uses of an object's attributes in a method, in execution order."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._written: set[str] = set()
        self.read_first: set[str] = set()
        self.changed: list[str] = []
        self.called: list[str] = []

    @classmethod
    def of(cls, function: Callable[..., Any]) -> _Uses:
        """Collect the uses in a function; none if its source is not available."""
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        except (OSError, TypeError, SyntaxError, IndexError):
            return cls("")
        arguments = tree.args.args if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef) else []
        uses = cls(arguments[0].arg if arguments else "")
        for statement in getattr(tree, "body", []) if uses._own else []:
            uses.visit(statement)
        return uses

    def visit_Assign(self, node: ast.Assign) -> None:
        for part in (node.value, *node.targets):
            self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._read(self._name(node.target))
        self.visit(node.target)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        name = self._name(node.value)
        if name is not None and isinstance(node.ctx, ast.Store):
            self.changed.append(name)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute):
            name = self._name(node.func.value)
            if name is not None and (node.func.attr in _CHANGING or _is_in_place(node.func.attr)):
                self.changed.append(name)
            method = self._name(node.func)
            if method is not None:
                self.called.append(method)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._name(node)
        if name is not None and isinstance(node.ctx, ast.Store):
            self.changed.append(name)
            self._written.add(name)
        elif isinstance(node.ctx, ast.Load):
            self._read(name)
        self.generic_visit(node)

    def _read(self, name: str | None) -> None:
        if name is not None and name not in self._written:
            self.read_first.add(name)

    def _name(self, node: ast.AST) -> str | None:
        """Return the attribute's name if the node is an attribute of self, else None."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self._own:
            return node.attr
        return None


def _is_in_place(name: str) -> bool:
    """Return whether a tensor's method changes it in place."""
    return name.endswith("_") and not name.endswith("__")
