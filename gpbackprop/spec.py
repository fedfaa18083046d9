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
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, PlainValidator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

T = TypeVar("T")

Count = Annotated[int, Field(strict=True, gt=0)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, defer_build=True)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def spec(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose fields are validated when it is built."""
    made: Any = dataclass(frozen=True, config=_CONFIG)(cls)
    return made


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
    return known[name](**{key: item for key, item in value.items() if key != "type"})


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
