"""Names to classes, resolved on first use; other packages add names through entry points."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from secateur.errors import UserError

T = TypeVar("T")
NOUNS: Mapping[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True, kw_only=True)
class Registry(Generic[T]):
    """A lazy table of classes. Listing it imports none of them."""

    kind: str
    """What one entry is, in the words of a message: `unknown method 'flpa'`."""
    group: str
    """Entry-point group in which other packages add names, each with a value `module:Class`."""
    builtin: Mapping[str, str]
    """Name -> `module:Class`."""

    def names(self) -> dict[str, str]:
        """Every known name and where its class is. Raises `UserError` if a plug-in takes a built-in's name."""
        plugins = {entry.name: entry.value for entry in entry_points(group=self.group)}
        if clash := sorted(plugins.keys() & self.builtin.keys()):
            raise UserError(f"a plug-in shadows the built-in {self.kind} {', '.join(clash)}. Rename the plug-in's entry point.")
        return {**self.builtin, **plugins}

    def __getitem__(self, name: str) -> type[T]:
        """The class of a name. Raises `UserError` for an unknown name, with the nearest known ones."""
        known = self.names()
        if name not in known:
            raise UserError(f"unknown {self.kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}.")
        module, _, attribute = known[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def create(self, name: str, options: Mapping[str, Any] | None = None) -> T:
        """An instance of the named dataclass. Raises `UserError` for an unknown name or option."""
        kind = self[name]
        types = {f.name: f.type for f in fields(kind) if f.init} if is_dataclass(kind) else {}
        known = list(types)
        for option in options or {}:
            if option not in known:
                allowed = f"Known: {', '.join(known)}." if known else "It has no options."
                raise UserError(f"{self.kind} {name!r} has no option {option!r}.{did_you_mean(option, known)} {allowed}")
        return kind(**{option: self._fitting(name, option, value, types[option]) for option, value in (options or {}).items()})

    def _fitting(self, name: str, option: str, value: Any, wanted: Any) -> Any:
        """The value, as a float where one is wanted. Raises `UserError` if it is of another type than the option."""
        if wanted is float and type(value) is int:
            return float(value)
        if wanted in NOUNS and type(value) is not wanted:
            raise UserError(f"{self.kind} {name!r}: option {option} is {value!r}. Allowed: {NOUNS[wanted]}.")
        return value

    def spelled(self, text: str) -> T:
        """An instance from `name` or `name:option=value,option=value`. Raises `UserError` as `create` does."""
        name, _, rest = text.partition(":")
        options = {}
        for part in filter(None, rest.split(",")):
            option, equals, value = part.partition("=")
            if not equals:
                raise UserError(
                    f"{part!r} of {text!r} is not an option. Write {self.kind}s with options as {name}:option=value,..."
                )
            if option.strip() in options:
                raise UserError(f"option {option.strip()!r} is given twice in {text!r}. Give it once.")
            options[option.strip()] = _value(value.strip())
        return self.create(name, options)


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that starts with a space, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""
