"""Floor 4: a TOML file to the objects of a run, and every mistake in it in one report.

Each line of the report names the file and line, the dotted path, what was found and what is allowed.
"""

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from gpbackprop import layers as _layers  # noqa: F401  finds every layer
from gpbackprop.backend import Backend, select
from gpbackprop.data import Data, Dataset, load
from gpbackprop.data.catalog import CATALOG, entry
from gpbackprop.errors import ConfigError, DataError
from gpbackprop.layers.base import Layer
from gpbackprop.layers.combine import Chain
from gpbackprop.losses import Loss
from gpbackprop.optim.base import Optimizer
from gpbackprop.settings import Train, render
from gpbackprop.spec import Count, Seed, Text, mistakes, one_of, spec, suggest, to_table
from gpbackprop.trainer import Trainer


def _name(value: str) -> str:
    if not value or re.search(r"[/\\\x00-\x1f]", value) or value.startswith("."):
        raise ValueError(f"found {value!r}, expected a name for a directory, without slashes and a leading dot")
    return value


@spec
class Config:
    """One run: what a config file says. See `gpbackprop init` for a commented example."""

    data: Data
    model: tuple[one_of(Layer), ...]
    loss: one_of(Loss)
    optimizer: one_of(Optimizer)
    train: Train = Train()
    name: Annotated[Text, AfterValidator(_name)] = "run"
    seed: Seed | tuple[Seed, ...] = 0
    population: Count = 1

    def __post_init__(self):
        found = [] if self.model else ["model: has no layers; add [[model]] tables"]
        folds = self.data.folds if self.data.fold is None else None
        if folds and self.population not in (1, folds):
            found.append(
                f"population: found {self.population}, but data.folds = {folds} trains one member for each fold; leave "
                "population out, or choose one fold with data.fold"
            )
        elif folds:
            object.__setattr__(self, "population", folds)
        if folds and self.optimizer.swarm:
            found.append(
                f"data.folds: found {folds}, but all particles of a swarm are one network; train one fold at a time "
                "with data.fold"
            )
        if isinstance(self.seed, tuple) and len(self.seed) != self.population:
            found.append(f"seed: has {len(self.seed)} entries for a population of {self.population}")
        elif not isinstance(self.seed, tuple) and self.seed + self.population > 2**63:
            found.append(f"seed: found {self.seed}, the seeds of a population of {self.population} end above 2^63 - 1")
        for field in dataclasses.fields(self.optimizer):  # a list of numbers has one for each member
            value = getattr(self.optimizer, field.name)
            numbers = isinstance(value, tuple) and value and isinstance(value[0], float | int)
            if numbers and len(value) not in (1, self.population):
                found.append(f"optimizer.{field.name}: has {len(value)} entries for a population of {self.population}")
        if found:
            raise ValueError("\n".join(found))

    def trainer(self, device: str | Backend = "auto", data: Dataset | None = None) -> Trainer:
        """The trainer of this run, on its own data unless others are given."""
        backend = select(device) if isinstance(device, str) else device
        return Trainer(
            Chain(*self.model),
            self.loss,
            self.optimizer,
            data or load(self.data, dtype=self.train.dtype, device=backend),
            seed=self.seed,
            population=self.population,
            device=backend,
            name=self.name,
            **{field.name: getattr(self.train, field.name) for field in dataclasses.fields(self.train)},
        )

    def settled(self, data: Dataset) -> "Config":
        """The config of this run with what the machine has decided: whether these data, its own, are streamed."""
        if data.source is None:
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, stream=data.source.stream))

    def member(self, k: int) -> "Config":
        """The config of member `k` of the population alone, with its seed, its fold and its entries of lists."""
        lists = {name: value for name, value in vars(self.optimizer).items() if isinstance(value, tuple)}
        numbers = {name: value for name, value in lists.items() if value and isinstance(value[0], int | float)}
        own: dict[str, Any] = {name: value[k if len(value) > 1 else 0] for name, value in numbers.items()}
        folds = self.data.folds if self.data.fold is None else None
        return dataclasses.replace(
            self,
            seed=self.seed + k if isinstance(self.seed, int) else self.seed[k],
            population=1,
            data=dataclasses.replace(self.data, fold=k) if folds else self.data,
            optimizer=dataclasses.replace(self.optimizer, **own),
        )

    def text(self) -> str:
        """The resolved config: TOML with every default written out, which loads again to the same run."""
        return render(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


def read(path: Path, settings: Sequence[str] = ()) -> Config:
    """The config of a file, with `--set` settings "key.path=value" applied. Raises ConfigError with every mistake."""
    return parse(read_text(path), str(path), settings, path.parent)


def read_text(path: Path) -> str:
    """The text of a config file. Raises ConfigError, with what to do, where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = suggest(path.name, [other.name for other in path.parent.glob("*.toml")] if path.parent.is_dir() else [])
        raise ConfigError(f"{path}: there is no such config file{near}; `gpbackprop init NAME` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {reason}") from None


def parse(text: str, origin: str, settings: Sequence[str] = (), base: Path | None = None) -> Config:
    """The config in a TOML text; `origin` is what errors call it.

    `base` is the folder that relative data paths start from. They become absolute, so that the resolved config means
    the same from everywhere; a path in a setting was typed on a command line and starts at the working directory.
    Raises ConfigError with every mistake, DataError for a source that is no name of the catalog.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"at line (\d+)", str(error))
        line = where[1] if where else str(text.count("\n") + 1)
        raise ConfigError(f"{origin}:{line}: is not TOML: {error}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
        why = (
            "is nested too deeply" if isinstance(error, RecursionError) else f"holds a number that is too long: {error}"
        )
        raise ConfigError(f"{origin}: {why}") from None
    changed = [_apply(table, setting) for setting in settings]
    try:
        config = TypeAdapter(Config).validate_python(table)
    except ValidationError as error:
        raise ConfigError(_report(error, table, text, origin, changed)) from None
    except RecursionError:
        raise ConfigError(f"{origin}: its layers are nested too deeply") from None
    if base is None:
        return config
    keys = ("source", "validation", "test")
    paths = {key: getattr(config.data, key) for key in keys if isinstance(getattr(config.data, key), str)}
    for key, value in paths.items():
        if "\0" in value:
            raise ConfigError(f"{_place(('data', key), text, origin, changed)[1]}: data.{key}: {value!r} is no path")
    source = config.data.source
    if source in CATALOG or (source == Path(source).stem and not (base / source).exists()):
        del paths["source"]
        try:
            entry(source)
        except DataError as error:
            raise DataError(f"{_place(('data', 'source'), text, origin, changed)[1]}: data.source: {error}") from None
    folders = {key: Path() if ("data", key) in changed else base for key in paths}
    absolute: dict[str, Any] = {
        key: os.path.abspath(folders[key] / os.path.expanduser(path)) for key, path in paths.items()
    }
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **absolute))


@contextmanager
def placed(text: str, origin: str, settings: Sequence[str] = ()) -> Iterator[None]:
    """A ConfigError from inside that begins with a path of the config comes out with the line of `text` before it.

    Which lists and shapes fit is seen when the data are read and the network is built, long after the text.
    """
    try:
        yield
    except ConfigError as error:
        message = str(error)
        key = _key(message.partition(":")[0].partition(" = ")[0])
        if key is None:
            raise
        changed = [tuple(setting.partition("=")[0].strip().split(".")) for setting in settings]
        raise type(error)(f"{_place(key, text, origin, changed)[1]}: {message}") from None


@contextmanager
def opened(path: Path, settings: Sequence[str] = ()) -> Iterator[Config]:
    """The config of a file, as `read` gives it. What is seen only inside comes out with its line, as from `placed`."""
    text = read_text(path)
    config = parse(text, str(path), settings, path.parent)
    with placed(text, str(path), settings):
        yield config


def _key(lead: str) -> tuple[str, ...] | None:
    """The path in a config that an error begins with: "loss.class_weights", or "2-residual/0-dense/W" of a layer."""
    if re.match(r"\d+-\w+", lead):
        first, *inside = lead.split("/")
        deeper = (("layers", part.partition("-")[0]) if "-" in part else ("init", part) for part in inside)
        return ("model", first.partition("-")[0], *(part for pair in deeper for part in pair))
    key = tuple(lead.split("."))
    return key if key[0] in (field.name for field in dataclasses.fields(Config)) else None


def differences(a: Config, b: Config) -> list[str]:
    """The dotted paths at which two configs differ, with what each of them says.

    What is left to the machine in one of them is not different from what it has decided in the other.
    """
    if "auto" in (a.data.stream, b.data.stream):
        a, b = (dataclasses.replace(each, data=dataclasses.replace(each.data, stream="auto")) for each in (a, b))
    one, other = _leaves(to_table(a)), _leaves(to_table(b))
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return [f"{key}: {one.get(key, 'not given')!r}, not {other.get(key, 'not given')!r}" for key in keys]


def _leaves(table: Any, path: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted path; a list of plain values is one value."""
    if isinstance(table, list) and any(isinstance(item, dict) for item in table):
        table = dict(enumerate(table))
    if not isinstance(table, dict):
        return {path: table}
    prefix = f"{path}." if path else ""
    return {key: leaf for name, item in table.items() for key, leaf in _leaves(item, f"{prefix}{name}").items()}


def _apply(table: dict, setting: str) -> tuple[str, ...]:
    """Write the setting "model.0.units=32" into the table; returns its path."""
    name, equals, value = setting.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {setting!r}: expected KEY=VALUE, for example optimizer.lr=0.1 or model.0.units=32")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    spot: Any = table
    for depth, part in enumerate(path[:-1]):
        key = _index(spot, part, path[:depth], setting) if isinstance(spot, list) else part
        if isinstance(spot, dict):
            spot.setdefault(key, {})
        if isinstance(spot[key], str):  # a name written short: schedule = "cosine"
            spot[key] = {"type": spot[key]}
        spot = spot[key]
        if not isinstance(spot, dict | list):
            raise ConfigError(f"--set {setting!r}: {'.'.join(path[: depth + 1])} is {spot!r}, not a table")
    if isinstance(spot, list):
        spot[_index(spot, path[-1], path[:-1], setting)] = parsed
    else:
        spot[path[-1]] = parsed
    return path


def _index(items: list, part: str, path: tuple[str, ...], setting: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(
            f"--set {setting!r}: {'.'.join(path)} has entries 0 to {len(items) - 1}, there is no {part!r}"
        )
    return int(part)


def _report(error: ValidationError, table: dict, text: str, origin: str, changed: list[tuple[str, ...]]) -> str:
    """One line for each mistake, in the order of the file."""
    rows = []
    for path, message in mistakes(error, Config, table).items():
        key = tuple(map(str, path))
        line, where = _place(key, text, origin, changed)
        rows.append((line, f"{where}: {'.'.join(key) or 'config'}: {message}"))
    return "\n".join(row for _, row in sorted(rows, key=lambda row: row[0]))


def _place(key: tuple[str, ...], text: str, origin: str, changed: Sequence[tuple[str, ...]]) -> tuple[int, str]:
    """The line of a key, or of the nearest table around it, and how it is called: "file:line" or "command line"."""
    lines = _lines(text)
    line = next((lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines), 1)
    typed = any(key[: len(c)] == c or (key not in lines and c[: len(key)] == key) for c in changed)
    return line, "command line" if typed else f"{origin}:{line}"


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each key and table header: {("model", "1", "units"): 12, ...}."""
    lines: dict[tuple[str, ...], int] = {(): 1}
    here: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]", line):
            path: tuple[str, ...] = ()
            for part in _split(header[2]):
                path += (part,)
                if path in counts and not (header[1] == "[[" and path == _split(header[2])):
                    path += (str(counts[path]),)
            if header[1] == "[[":
                counts[path] = counts.get(path, -1) + 1
                path += (str(counts[path]),)
            here = path
            lines[here] = number
        elif key := re.match(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""", line):
            lines.setdefault((*here, *_split(key[1])), number)
    return lines


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.findall(r"""[\w-]+|"[^"]*"|'[^']*'""", dotted))
