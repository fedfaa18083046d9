"""Rows that are sequences: windows over a series, characters of a text, and tasks that ask for a memory.

A series is a table whose rows lie in time. A window of it is the row of a network, (window, features), and its target
lies `horizon` rows after its last one. A text is cut into pieces of `window` characters, each with the character that
follows it as its class.
"""

from pathlib import Path

import numpy as np

from gpbackprop.data.table import Raw, Words
from gpbackprop.errors import DataError


def windows(x: np.ndarray, window: int, where: str) -> np.ndarray:
    """Every `window` consecutive rows of a series (M, ...): (M - window + 1, window, features)."""
    x = x.reshape(len(x), -1)
    if len(x) < window:
        raise DataError(f"{where}: has {len(x)} rows, data.window = {window} asks for at least as many")
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(x, window, axis=0).swapaxes(1, 2))


def chronological(n: int, fractions: dict[str, float], where: str) -> dict[str, np.ndarray]:
    """Row indices 0..n-1 in time: training first, then validation, then test, of round(fraction n) rows each."""
    if n < 1:
        raise DataError(f"{where}: is too short for one row of data.window steps and a target after it")
    parts, end = {}, n
    for name, fraction in fractions.items():
        start = end - int(fraction * n + 0.5)
        if not 0 < start < end:
            raise DataError(f"{where}: {name} = {fraction} of {n} windows leaves one of the splits without any")
        parts[name], end = np.arange(start, end, dtype=np.int64), start
    return {"train": np.arange(end, dtype=np.int64), **parts}


def read_text(path: Path, window: int) -> Raw:
    """The characters of a UTF-8 text, `window` in a row, and for each the one that follows.

    The last characters that do not fill a row are left out. Raises DataError for a text that is too short.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    n = (len(text) - 1) // window
    if n < 1:
        raise DataError(f"{path}: has {len(text)} characters; data.window = {window} needs {window + 1} at least")
    words, codes = np.unique(np.array(list(text[: n * window + 1])), return_inverse=True)
    names = tuple(map(str, words))
    inputs, targets = (Words(part.reshape(n, window), names) for part in (codes[:-1], codes[1:]))
    return Raw(str(path), inputs, targets, target_names=("next",), kind="text")


def symbols(raw: Raw, classes: tuple[str, ...]) -> np.ndarray:
    """The characters of a text as numbers of the known ones. Raises DataError, with its place, for any other."""
    known = {word: i for i, word in enumerate(classes)}
    table = np.array([known.get(word, -1) for word in raw.inputs.words])
    numbers = table[raw.inputs.codes]
    if (numbers < 0).any():
        at = int(np.argmax(numbers.reshape(-1) < 0))
        word = raw.inputs.words[raw.inputs.codes.reshape(-1)[at]]
        raise DataError(f"{raw.where}, character {at + 1}: {word!r} is not in the text that the model was trained on")
    return numbers.astype(np.uint8 if len(classes) <= 256 else np.int32)


# Generated: (rng, rows, length) -> Raw.


def adding(rng: np.random.Generator, rows: int, length: int) -> Raw:
    """x_t = (a number in [0, 1), a mark); y = the sum of the two numbers that are marked, one in each half.

    Always answering 1 has a mean squared error of 1/6 (S. Hochreiter and J. Schmidhuber, 1997).
    """
    if length < 2:
        raise DataError(f"adding: data.window = {length}; each half of a row needs a step to mark")
    x = np.zeros((rows, length, 2))
    x[..., 0] = rng.random((rows, length))
    half, row = length // 2, np.arange(rows)
    first, second = rng.integers(0, half, rows), rng.integers(half, length, rows)
    x[row, first, 1] = x[row, second, 1] = 1
    y = x[row, first, 0] + x[row, second, 0]
    return Raw("adding", x, y[:, None], target_names=("sum",), kind="sequences")


def copy(rng: np.random.Generator, rows: int, length: int) -> Raw:
    """Ten symbols, blanks, a sign, and ten steps in which to say the symbols again; before them the answer is blank.

    `length` is that of the whole. x is one-hot: symbols A to H, the blank -, the sign (M. Arjovsky et al., 2016).
    """
    if length < 21:
        raise DataError(f"copy: data.window = {length}; ten symbols, a sign and ten answers need 21 steps")
    say = rng.integers(0, 8, (rows, 10))
    inputs, answers = (np.full((rows, length), 8) for _ in range(2))
    inputs[:, :10], inputs[:, -11], answers[:, -10:] = say, 9, say
    x, y = np.eye(10, dtype=np.uint8)[inputs], Words(answers, tuple("ABCDEFGH-"))
    return Raw("copy", x, y, target_names=("answer",), kind="sequences")


# The states of Reber's grammar: (symbol, next state) for each way on; state 5 says E.
_GRAMMAR = (
    (("T", 1), ("P", 2)),
    (("S", 1), ("X", 3)),
    (("T", 2), ("V", 4)),
    (("X", 2), ("S", 5)),
    (("P", 3), ("V", 5)),
)
REBER = "BTPSXVE"


def reber_string(rng: np.random.Generator) -> str:
    """A string of the embedded grammar: B, T or P, a string of Reber's grammar, the same T or P again, E."""
    inner, state = "B", 0
    while state != 5:
        symbol, state = _GRAMMAR[state][rng.integers(2)]
        inner += symbol
    ends = "TP"[rng.integers(2)]
    return f"B{ends}{inner}E{ends}E"


def legal(string: str) -> list[str]:
    """The symbols that may follow each of the symbols of a string of the embedded grammar, but the last."""
    found, state = ["TP", "B", "TP"], 0
    for symbol in string[3:-3]:
        state = dict(_GRAMMAR[state])[symbol]
        found.append("E" if state == 5 else "".join(way for way, _ in _GRAMMAR[state]))
    return [*found, string[1], "E"]


def reber(rng: np.random.Generator, rows: int, length: int) -> Raw:
    """Strings of the embedded Reber grammar with at most `length` symbols to read; the target of each is the next one.

    Only a memory of the second symbol tells the last but one (A. Reber, 1967; S. Fahlman, 1991).
    """
    if length < 8:
        raise DataError(f"reber: data.window = {length}; the shortest strings have 8 symbols before the last")
    x, y = np.zeros((rows, length, len(REBER)), np.uint8), np.zeros((rows, length), np.int64)
    lengths = np.zeros(rows, np.int64)
    for row in range(rows):
        while len(string := reber_string(rng)) > length + 1:
            pass
        codes = np.array([REBER.index(symbol) for symbol in string])
        n = lengths[row] = len(codes) - 1
        x[row, np.arange(n), codes[:-1]] = 1
        y[row, :n] = codes[1:]
    return Raw("reber", x, Words(y, tuple(REBER)), target_names=("next",), lengths=lengths, kind="sequences")


# name: (function, rows, length)
SEQUENCES = {
    "adding": (adding, 10_000, 50),
    "copy": (copy, 5_000, 40),
    "reber": (reber, 1_000, 30),
}
