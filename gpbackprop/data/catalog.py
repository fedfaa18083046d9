"""The data sets that have a name: embedded files, generated ones, and those that are fetched or lie in a directory.

Nothing here opens a connection but `fetch`, which a user calls by `gpbackprop data fetch NAME`.
"""

import hashlib
import io
import os
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from gpbackprop.data.generated import GENERATED
from gpbackprop.data.sequences import SEQUENCES
from gpbackprop.errors import DataError
from gpbackprop.spec import suggest


@dataclass(frozen=True)
class Remote:
    """A file to fetch. `sha256` is that of its bytes; `values_sha256` that of the float64 numbers in its rows, for a
    table whose spelling may change (5.0 and 5) but whose numbers may not.
    """

    path: str
    url: str
    sha256: str | None = None
    values_sha256: str | None = None


@dataclass(frozen=True)
class Entry:
    """A data set of the catalog. `file` is embedded, with its `sha256`; `columns` says that it is a CSV;
    `pixels` that its inputs are bytes of an image of the shape `stored`; `remote` are the files of one that is fetched.
    """

    name: str
    rows: int
    inputs: str
    task: str
    about: str
    source: str
    licence: str
    file: str | None = None
    sha256: str | None = None
    target: str | None = None
    columns: bool = True
    pixels: bool = False
    stored: tuple[int, ...] = ()
    remote: tuple[Remote, ...] = ()

    @property
    def where(self) -> str:
        """Where the rows come from here and now, or what to do to have them."""
        if self.file:
            return "embedded"
        if self.name in GENERATED or self.name in SEQUENCES:
            return "generated"
        return found if (found := str(self.folder() or "")) else f"not here: {how_to_get(self.name)}"

    @property
    def available(self) -> bool:
        return not self.remote or self.folder() is not None

    def folder(self) -> Path | None:
        """The directory that holds all files of this data set: GPBACKPROP_DATA first, then the cache of `fetch`."""
        for folder in (*([Path(given)] if (given := os.environ.get("GPBACKPROP_DATA")) else ()), cache_directory()):
            if all((folder / remote.path).is_file() for remote in self.remote):
                return folder
        return None


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SEEDS = "https://raw.githubusercontent.com/jbrownlee/Datasets/98db92a469e2a2e5062ee42d6ba73c74f2f224a6/wheat-seeds.csv"
_UCI = "UCI Machine Learning Repository"
_OWN = "MIT (made by this program)"

CATALOG = {
    entry.name: entry
    for entry in (
        Entry(
            "iris", 150, "4 numbers", "classification, 3 classes", "Sepals and petals of three species of iris.",
            f"R. A. Fisher (1936), {_UCI}, doi:10.24432/C56C76", "CC BY 4.0",
            "iris.csv", "b6b8efc86732bc48c9fbddba53e2c191fd4f263c0ee98e2b1b7d3543e8d2121d", "species",
        ),
        Entry(
            "digits", 1797, "8x8 pixels", "classification, 10 classes", "Handwritten digits, 8x8 pixels of 0..16.",
            f"E. Alpaydin and C. Kaynak (1998), {_UCI}, doi:10.24432/C50P49 (its test part)", "CC BY 4.0",
            "digits.csv.gz", "a30cd0aedabcb10bf90acca9b062871fae7ba6750b80ba3956f94e3585e29341", "digit",
            pixels=True, stored=(8, 8),
        ),
        Entry(
            "wine", 178, "13 numbers", "classification, 3 classes", "Chemical analysis of wines of three cultivars.",
            f"S. Aeberhard and M. Forina (1992), {_UCI}, doi:10.24432/C5PC7J", "CC BY 4.0",
            "wine.csv", "3ce67f610c87c7ad0ca5cd5c50b19fecfc80d0b21916b53a650c49610fd0ba89", "cultivar",
        ),
        Entry(
            "penguins", 344, "5 numbers, 2 texts", "classification, 3 classes",
            "Penguins of the Palmer archipelago; has missing values, so `missing` must be \"drop\" or \"mean\".",
            "K. Gorman, T. Williams, W. Fraser (2014); A. Horst, A. Hill, K. Gorman, palmerpenguins (2020)", "CC0 1.0",
            "penguins.csv", "f204db2c753b0937caac3cb35258562c14f073e4bbc76be24b4c51ce22767a93", "species",
        ),
        Entry(
            "xor", 4, "2 numbers", "classification, 2 classes", "The corners of a square: x0 xor x1.",
            "generated", _OWN, columns=False,
        ),
        Entry(
            "spirals", 400, "2 numbers", "classification, 2 classes", "Two spirals in each other.",
            "generated", _OWN, columns=False,
        ),
        Entry(
            "moons", 400, "2 numbers", "classification, 2 classes", "Two half circles in each other.",
            "generated", _OWN, columns=False,
        ),
        Entry(
            "sine", 256, "1 number", "regression", "A sine with noise.", "generated", _OWN, columns=False,
        ),
        Entry(
            "wave", 400, "1 number", "series", "A sine in time with noise, 25 steps a period; set `window`.",
            "generated", _OWN, columns=False,
        ),
        Entry(
            "adding", 10000, "50 steps of 2 numbers", "sequences, regression",
            "The sum of the two marked numbers of a row; `window` is its length.", "generated", _OWN, columns=False,
        ),
        Entry(
            "copy", 5000, "40 steps of 10 symbols", "sequences, a class for each step",
            "Ten symbols, to be said again after a pause; `window` is the length of the whole.",
            "generated", _OWN, columns=False,
        ),
        Entry(
            "reber", 1000, "up to 30 steps of 7 symbols", "sequences, a class for each step",
            "Strings of the embedded Reber grammar: the next symbol; `window` is the greatest length.",
            "generated", _OWN, columns=False,
        ),
        Entry(
            "airline", 144, "year, month", "regression",
            "Airline passengers a month, in thousands, 1949 to 1960; with `window` a series.",
            "G. Box and G. Jenkins, Time Series Analysis (1970), series G", "facts, no copyright",
            "airline.csv", "f73e3f60f2cf735648911ce7f38dd6c0df7741bc95599d563483eb1dd407f6a7", "passengers",
        ),
        Entry(
            "sunspots", 309, "year", "regression", "Sunspots a year, 1700 to 2008; with `window` a series.",
            "National Geophysical Data Center, solar activity data", "public domain",
            "sunspots.csv", "74b8e3acb9886b68abe9c56f6081257d522e2cb2470f17dbf597b396f4ea1706", "sunspots",
        ),
        Entry(
            "mnist", 70000, "28x28 pixels", "classification, 10 classes",
            "Handwritten digits: 60000 rows and 10000 to test.",
            "Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits", "CC BY-SA 3.0",
            columns=False, pixels=True, stored=(28, 28),
            remote=tuple(
                Remote(f"mnist/{name}-ubyte.gz", f"{_MNIST}{name}-ubyte.gz", sha256)
                for name, sha256 in (
                    ("train-images-idx3", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                    ("train-labels-idx1", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                    ("t10k-images-idx3", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                    ("t10k-labels-idx1", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
                )
            ),
        ),
        Entry(
            "seeds", 210, "7 numbers", "classification, 3 classes", "Kernels of three varieties of wheat.",
            f"M. Charytanowicz et al. (2010), {_UCI}, doi:10.24432/C5H30K", "CC BY 4.0",
            remote=(
                Remote(
                    "seeds.csv", _SEEDS,
                    values_sha256="1df01b571e636d41f6de3e93e3e645f05a9a31c88b50104cc69c2a09b7f3f2ee",
                ),
            ),
        ),
    )
}  # fmt: skip


def catalog() -> list[Entry]:
    """Every data set that has a name: its rows, inputs and task, whether it is available, and where."""
    return list(CATALOG.values())


def entry(name: str) -> Entry:
    """The entry of `name`. Raises DataError, with the nearest name, for one that is not known."""
    if name not in CATALOG:
        raise DataError(f"no data set is called {name!r}{suggest(name, CATALOG)}; there are: {', '.join(CATALOG)}")
    return CATALOG[name]


def info(name: str) -> dict[str, str]:
    """What is known of the data set `name`, ready to print: task, source, licence, digest, columns, where it lies."""
    e = entry(name)
    facts = {
        "name": e.name, "about": e.about, "rows": str(e.rows), "inputs": e.inputs, "task": e.task,
        "source": e.source, "licence": e.licence, "where": e.where,
    }  # fmt: skip
    if e.file:
        facts |= {"sha256": str(e.sha256), "target": str(e.target), "columns": _columns(e)}
    for remote in e.remote:
        kind, digest = ("sha256", remote.sha256) if remote.sha256 else ("sha256 of its numbers", remote.values_sha256)
        facts[remote.path] = f"{remote.url} ({kind} {digest})"
    return facts


def _columns(e: Entry) -> str:
    import gzip

    raw = resources.files(__package__).joinpath("files", str(e.file)).read_bytes()
    return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).split(b"\n", 1)[0].decode().replace(",", ", ")


def embedded(e: Entry) -> Path:
    """The path of an embedded file, its digest verified. Raises DataError when the installed file has changed."""
    path = Path(str(resources.files(__package__).joinpath("files", str(e.file))))
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: the embedded data set {e.name!r} cannot be read ({error}); install again") from error
    if found != e.sha256:
        raise DataError(f"{path}: the embedded data set {e.name!r} was changed (sha256 {found}); install again")
    return path


def located(e: Entry) -> list[Path]:
    """The files of a data set that is not embedded. Raises DataError that says how to get them."""
    folder = e.folder()
    if folder is None:
        given = os.environ.get("GPBACKPROP_DATA")
        looked = f"GPBACKPROP_DATA ({given})" if given else "GPBACKPROP_DATA (not set)"
        raise DataError(f"{e.name}: not found in {looked} nor in {cache_directory()}; {how_to_get(e.name)}")
    return [folder / remote.path for remote in e.remote]


def how_to_get(name: str) -> str:
    """The two ways to a data set that is not embedded."""
    files = ", ".join(remote.path for remote in CATALOG[name].remote)
    return f"run `gpbackprop data fetch {name}`, or set GPBACKPROP_DATA to a directory with {files}"


def cache_directory() -> Path:
    """Where `fetch` puts files: $XDG_CACHE_HOME/gpbackprop, or the usual place of the platform."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "gpbackprop"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "gpbackprop" / "cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "gpbackprop"


def fetch(name: str, directory: str | Path | None = None, progress: bool = False) -> Path:
    """Download the files of `name` into `directory` (by default the cache) and verify their digests; the directory.

    Raises DataError when there is nothing to fetch, pooch is missing, the network fails, or a digest is wrong.
    """
    e = entry(name)
    if not e.remote:
        raise DataError(f"{name}: is {e.where}, there is nothing to fetch; use it as `source = {name!r}`")
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f'{name}: fetching needs the package pooch: `pip install "gpbackprop[fetch]"`; '
            f"or get {', '.join(remote.url for remote in e.remote)} yourself and {how_to_get(name).split(', or ')[1]}"
        ) from error
    folder = Path(directory) if directory else cache_directory()
    for remote in e.remote:
        path = folder / remote.path
        known = f"sha256:{remote.sha256}" if remote.sha256 else None
        try:
            pooch.get_logger().setLevel("WARNING")
            pooch.retrieve(remote.url, known, fname=path.name, path=path.parent, progressbar=progress)
        except ValueError as error:  # pooch's word for a wrong digest
            raise DataError(f"{remote.url}: the file that came is not the one expected ({error})") from error
        except Exception as error:  # requests' errors are not OSErrors in all versions
            raise DataError(f"{remote.url}: cannot be fetched ({error}); {how_to_get(name)}") from error
        if remote.values_sha256 and values_digest(path.read_bytes()) != remote.values_sha256:
            path.unlink()
            raise DataError(f"{remote.url}: the numbers that came are not the ones expected")
    return folder


def values_digest(text: bytes) -> str:
    """The SHA-256 of the numbers of a CSV text, as little-endian float64 row by row; "" when they are none."""
    try:
        values = np.loadtxt(io.BytesIO(text), delimiter=",", dtype="<f8", ndmin=2)
    except ValueError:
        return ""
    return hashlib.sha256(values.tobytes()).hexdigest()
