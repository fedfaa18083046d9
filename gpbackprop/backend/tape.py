"""A step on tape: the calls that its closures make through `xp` and the verbs, in order, over fixed arrays.

A step does the same calls on the same arrays every time, so that it need run as Python code only once. While it runs
for the first time a backend writes each call down; from then on it replays the list in whatever way is fastest for the
device. Seen is what writes into an array that it is given: `xp.add(x, y, out=z)`, `xp.copyto(z, x)`, and the verbs. A
result in an array of its own would be frozen at its first value; the tape knows that it has lost the thread then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """`function(*inputs, out=out, **options)`; a verb of the backend, and copyto, take `out` by position."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    out: Any
    options: dict[str, Any] = field(default_factory=dict)
    verb: bool = False


class Lost(Exception):  # noqa: N818 (nothing is wrong: the step runs as it is)
    """A call without a place, met by a tape that only listens."""


class Tape:
    """`calls` is the list that is written, None while nobody records; `lost` is the first call without a place.

    With `listens` the calls are written down but not made.
    """

    def __init__(self) -> None:
        self.calls: list[Call] | None = None
        self.lost, self.listens = "", False

    def record(self, steps: Sequence[Callable[[], None]], listens: bool = False) -> list[Call] | None:
        """Run `steps` and return the calls that they made; None where a call's result has no fixed place.

        With `listens` nothing is computed: only the names of the calls and their arrays are seen.
        """
        calls: list[Call] = []
        self.calls, self.lost, self.listens = calls, "", listens
        try:
            for step in steps:
                step()
        except Lost:
            pass
        finally:
            self.calls, self.listens = None, False
        return None if self.lost else calls

    def guard(self, function: Callable[..., None]) -> Callable[..., None]:
        """`function`, which a tape writes down as one call where it is not this package's own.

        Others write `y[...] = x` in their steps, which no tape sees: what they wrote runs as it is.
        """
        inner = function
        while isinstance(inner, partial):
            inner = inner.func
        if inner.__module__.startswith("gpbackprop."):
            return function

        def call(*arguments: Any) -> None:
            calls, self.calls = self.calls, None
            try:
                if not self.listens:
                    function(*arguments)
            finally:
                self.calls = calls
            if calls is not None:
                calls.append(Call("python", function, arguments, None, verb=True))

        return call

    def write(self, call: Call) -> None:
        """Write a call down, where somebody records. Raises Lost where the rest need not be heard."""
        if self.calls is not None:
            self.lost = self.lost or (call.name if call.out is None else "")
            if self.lost and self.listens:
                raise Lost
            self.calls.append(call)


class Namespace:
    """An array namespace (NumPy or CuPy) whose calls a tape can write down."""

    def __init__(self, module: Any, tape: Tape):
        self._module, self._tape = module, tape

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)  # once for each name: the answer stays here as an attribute
        if callable(found) and not isinstance(found, type):
            found = self._watched(name, found)
        setattr(self, name, found)
        return found

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        def call(*inputs: Any, **options: Any) -> Any:
            if tape.calls is not None:
                kept = dict(options)
                tape.write(Call(name, function, inputs, kept.pop("out", None), kept))
                if tape.listens:
                    return options["out"]
            return function(*inputs, **options)

        def copyto(out: Any, value: Any, **options: Any) -> None:
            if tape.calls is not None:
                tape.write(Call("copyto", function, (value,), out, options))
                if tape.listens:
                    return
            function(out, value, **options)

        return copyto if name == "copyto" else call


def verb(method: Callable[..., None]) -> Callable[..., None]:
    """A backend's method whose last argument is written, and which a tape writes down as one call."""

    @wraps(method)
    def call(self: Any, *arguments: Any) -> None:
        if self.tape.calls is not None:
            self.tape.write(Call(method.__name__, partial(method, self), arguments[:-1], arguments[-1], verb=True))
            if self.tape.listens:
                return
        method(self, *arguments)

    return call
