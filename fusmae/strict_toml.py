"""A frozen dataclass from a TOML file: an unknown key, a wrong type and a bad value are errors."""

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def build(cls: type[T], table: dict[str, Any], where: str = "") -> T:
    """A `cls` from a TOML table; nested dataclasses from nested tables.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a value of the wrong
            type, or one that the dataclass refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{where}{key}"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"; did you mean {where}{near[0]}?" if near else ""
            raise ValueError(f"unknown key {path}{hint} (known: {', '.join(sorted(fields))})")
        values[key] = _convert(value, hints[key], path)
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(str(error)) from None


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`, or a ValueError that names `path`."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type, hint), value, f"{path}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{path} = {value!r} is not one of {', '.join(map(repr, args))}")
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[:1] * len(value) if args[-1] is ... else args
        if len(inner) == len(value):
            return tuple(
                _convert(v, t, f"{path}[{i}]")
                for i, (v, t) in enumerate(zip(value, inner, strict=True))
            )
    if origin is dict and isinstance(value, dict):
        return {k: _convert(v, args[1], f"{path}.{k}") for k, v in value.items()}
    if origin is types.UnionType:
        for arm in args:
            try:
                return _convert(value, arm, path)
            except ValueError:
                continue  # what fits none is told below
    if hint is Path and isinstance(value, Path):
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(f"{path} = {value!r} is not of type {_describe(value, hint, path)}")


# Of each type an example, as TOML writes it.
_EXAMPLES = {int: "3", float: "1e-3", bool: "true", str: "'text'"}


def _describe(value: Any, hint: Any, path: str) -> str:
    """The name of a type, and a value of it that `--set` and a file take."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        told = [_describe(value, arm, path) for arm in args if arm is not Path]
        return ", or ".join(told)
    if typing.get_origin(hint) is tuple and typing.get_origin(args[0]) is Literal:
        choices = typing.get_args(args[0])
        one = value if value in choices else choices[0]
        return f'list of {", ".join(map(repr, choices))}: expected such as "{path}=[{one!r}]"'
    if typing.get_origin(hint) is tuple and args[0] in _EXAMPLES:
        one = repr(value) if value and type(value) is args[0] else _EXAMPLES[args[0]]
        entries = [one] if args[-1] is ... else [one] * len(args)
        return f'list of {args[0].__name__}: expected such as "{path}=[{", ".join(entries)}]"'
    if hint in _EXAMPLES:
        key = "" if path.endswith("]") else f"{path}="  # an entry of a list has no key
        return f"{hint.__name__}: expected such as {key}{_EXAMPLES[hint]}"
    if typing.get_origin(hint) is tuple:
        return f"list of tables: expected [[{path}]] in the file"
    name = "table" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint))
    return f"{name}: expected a table, [{path}] in the file"


def load_recipe(cls: type[T], path: Path, overrides: tuple[str, ...] = ()) -> T:
    """The recipe in a TOML file, after `a.b=value` overrides (values in TOML syntax).

    Raises:
        ValueError: the file is missing or not TOML, an override is not `key=value`, or a key or
            value is wrong; the message names the file or the key.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the recipe {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _apply(table, override)
    try:
        return build(cls, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {override}: expected key=value, such as optim.lr=1e-4")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ValueError(f"--set {override}: {parent} is not a table")
    table[leaf] = value


def as_table(recipe: Any) -> dict[str, Any]:
    """The recipe as plain JSON-ready values, every default spelled out."""
    return dataclasses.asdict(recipe)
