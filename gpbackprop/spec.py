"""A class's fields are its config schema.

A layer, loss, optimizer, schedule or metric is a frozen dataclass made by `@spec`. Its fields are checked when it is
built, from Python (`Dense(128)`) or from a table (`{type = "dense", units = 128}`), with the same messages. The `type`
of a class is its name in snake_case; a field that takes any class of a family is declared with `one_of(Family)`, and a
new class of the family is found there because it is a subclass: there is no list to keep.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, PydanticCustomError

from gpbackprop.errors import ConfigError

T = TypeVar("T")

Count = Annotated[int, Field(strict=True, gt=0)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]  # a checkpoint stores it as int64
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def spec(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose fields are validated when it is built.

    A direct call raises ConfigError with every mistake, `Dense: units: found 0, expected greater than 0`. A class with
    `__spread__` takes its positional arguments together as its first field.
    """

    def __init__(self, *args, **given):  # noqa: N807
        called: Any = type(self)
        args = (args,) if args and getattr(called, "__spread__", False) else args
        try:
            _validator(called).validate_python(ArgsKwargs(args, given), self_instance=self)
        except ValidationError as error:
            table = dict(zip(_in_order(called), args, strict=False)) | given
            rows = mistakes(error, called, table).items()
            told = (": ".join([called.__name__, *filter(None, [".".join(map(str, p))]), what]) for p, what in rows)
            raise ConfigError("\n".join(told)) from None

    made: Any = dataclasses.dataclass(frozen=True)(cls)
    made.__pydantic_config__, made.__init__ = _CONFIG, __init__
    return made


@cache
def _validator(cls: type) -> Any:
    """What checks the fields of a class, made when it is first needed: that takes a millisecond."""
    return TypeAdapter(cls).validator


def _in_order(cls: Any) -> list[str]:
    """The fields that a call may give by position."""
    return [field.name for field in dataclasses.fields(cls) if not field.kw_only]


def type_name(cls: type) -> str:
    """The name of a class in a config: `SoftmaxCrossEntropy` is `softmax_cross_entropy`, `SGD` is `sgd`.

    A class whose name is written otherwise gives it as `__type__`: that of `AdamW` is `adamw`.
    """
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    return vars(cls).get("__type__", snake)


def family(base: type) -> dict[str, type]:
    """Every class below `base` that a config can name, by its type name."""
    found: dict[str, type] = {}
    cls: type
    for cls in base.__subclasses__():
        if "__abstract__" not in vars(cls):
            found[type_name(cls)] = cls
        found.update(family(cls))
    return found


def suggest(word: str, words) -> str:
    """ " (did you mean 'x'?)" for the nearest of `words`, or nothing."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def build(base: type[T], value: Any) -> T:
    """An object of the family `base` from itself, from its type name, or from a table with a `type`.

    Raises pydantic's ValidationError or PydanticCustomError; inside a field their paths are joined to the field's.
    """
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        value = {"type": value}
    known = family(base)
    allowed = ", ".join(sorted(known))
    if not isinstance(value, Mapping):
        raise PydanticCustomError(
            "spec_type", "expected the name of a {base} or a table with a `type`, one of: {allowed}",
            {"base": base.__name__.lower(), "allowed": allowed},
        )  # fmt: skip
    name = value.get("type")
    if name is None:
        raise PydanticCustomError(
            "spec_missing_type", "the key `type` is missing; it is one of: {allowed}", {"allowed": allowed}
        )
    if not isinstance(name, str) or name not in known:
        raise PydanticCustomError(
            "spec_unknown_type", "unknown type {name}{hint}; allowed: {allowed}",
            {"name": repr(name), "hint": suggest(str(name), known), "allowed": allowed},
        )  # fmt: skip
    return _validator(known[name]).validate_python({key: item for key, item in value.items() if key != "type"})


def one_of(base: Any) -> Any:
    """The type of a field that takes any class of the family `base`."""
    return Annotated[base, PlainValidator(lambda value: build(base, value))]


def to_table(item: Any) -> Any:
    """The plain table that builds `item` again: every field that is not None, and the `type` of a family's class."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        table = {} if type(item).__bases__ == (object,) else {"type": type_name(type(item))}
        fields = {f.name: to_table(getattr(item, f.name)) for f in dataclasses.fields(item)}
        return table | {key: value for key, value in fields.items() if value is not None}
    if isinstance(item, Mapping):
        return {key: to_table(value) for key, value in item.items()}
    if isinstance(item, tuple | list):
        return [to_table(value) for value in item]
    return item


# What a user is told.


def mistakes(error: ValidationError, cls: type, table: Mapping) -> dict[tuple, str]:
    """What is wrong in a table of fields of `cls`: a message for each path of keys and indices."""
    found: dict[tuple, list[str]] = {}
    for item in error.errors(include_url=False):
        path = _path(cls, table, item)
        for message in _message(item, cls, table, path).splitlines():
            place, text = _lead(cls, table, path, message)
            found.setdefault(place, []).append(text)
    # Of a list, its entries tell more.
    inner = lambda path: any(other[: len(path)] == path != other for other in found)  # noqa: E731
    return {path: _joined(told) for path, told in found.items() if not (inner(path) and told[0].startswith("found "))}


def _path(cls: type, table: Any, item: Mapping) -> tuple:
    """The keys and indices of an error's place; pydantic's names of union branches are left out."""
    loc, names, spot = item["loc"], _in_order(cls), table
    if loc and isinstance(loc[0], int):  # an argument given by position
        loc = (*names[loc[0] : loc[0] + 1], *loc[1:])
    path = []
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        if (isinstance(spot, Mapping) and part in spot) or (
            isinstance(spot, list | tuple) and part in range(len(spot))
        ):
            path.append(part)
            spot = spot[part]
        elif last and item["type"] in ("missing", "unexpected_keyword_argument"):
            path.append(part)
    return tuple(path)


def _message(item: Mapping, cls: type, table: Mapping, path: tuple) -> str:
    kind, message = item["type"], item["msg"]
    if kind == "missing":
        return "is missing"
    if kind == "unexpected_keyword_argument":
        allowed = _allowed(cls, table, path[:-1])
        return f"unknown key{suggest(str(path[-1]), allowed)}; allowed: {', '.join(allowed)}"
    if kind == "unexpected_positional_argument":
        return f"found {item['input']!r}, one value too many; in order it takes {', '.join(_in_order(cls)) or 'none'}"
    if kind == "multiple_argument_values":
        return "is given twice, by position and by name"
    if kind.startswith("spec_"):
        return message
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    expected = message.replace("Input should be", "expected").replace("a valid tuple", "a list of them")
    return f"found {item['input']!r}, {expected.replace('a valid integer', 'an integer').replace('a valid ', 'a ')}"


def _lead(cls: type, table: Mapping, path: tuple, message: str) -> tuple[tuple, str]:
    """The place and the text of a message; a check across fields names its place at the start, "seed: has ..."."""
    name, _, rest = message.partition(": ")
    here = _class_at(cls, table, path)
    names = [field.name for field in dataclasses.fields(here)] if here and rest else []
    return ((*path, *name.split(".")), rest) if name.partition(".")[0] in names else (path, message)


def _joined(messages: list[str]) -> str:
    """One message of those for the branches of a union: "found 'x', expected an integer or a list"."""
    lead, expected = messages[0].partition(", expected ")[::2]
    if not expected or not all(message.startswith(f"{lead}, expected ") for message in messages):
        return " or ".join(dict.fromkeys(messages))
    return f"{lead}, expected {' or '.join(dict.fromkeys(m.removeprefix(f'{lead}, expected ') for m in messages))}"


def _allowed(cls: type, table: Mapping, path: tuple) -> list[str]:
    """The keys that the table at `path` may have."""
    found = _class_at(cls, table, path)
    names = [field.name for field in dataclasses.fields(found)] if found else []
    return names if not path or (found and found.__bases__ == (object,)) else ["type", *names]


def _class_at(cls: Any, table: Any, path: tuple) -> Any:
    """The class that the table at `path` inside a table of `cls` stands for, or None."""
    bases: list[type] = []
    for part in path:
        if part not in table and not isinstance(table, list | tuple):
            return None
        kinds = {field.name: field.type for field in dataclasses.fields(cls)} if cls else {}
        bases, table = _classes(kinds[part]) if part in kinds else bases, table[part]
        name = table.get("type") if isinstance(table, Mapping) else table
        named = [family(base)[name] for base in bases if isinstance(name, str) and name in family(base)]
        plain = [base for base in bases if dataclasses.is_dataclass(base) and isinstance(table, Mapping)]
        cls = next(iter([*named, *(base for base in plain if base.__bases__ == (object,))]), None)
    return cls


def _classes(kind: Any) -> list[type]:
    """The classes in the type of a field."""
    if isinstance(kind, type):
        return [kind] if kind.__module__ != "builtins" else []
    return [found for part in get_args(kind) for found in _classes(part)]
