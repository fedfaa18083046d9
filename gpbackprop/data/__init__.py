"""Data sets: where rows come from, how they are prepared, and which of them train, validate and test.

dataset = data.load("iris", validation=0.2)
dataset.splits["train"].inputs, dataset.preparation.classes
"""

from gpbackprop.data.catalog import catalog, fetch, info
from gpbackprop.data.preparation import Preparation
from gpbackprop.data.source import Data, load, read_inputs, read_labelled, read_rows
from gpbackprop.data.split import Dataset, Split, digest

__all__ = [
    "Data", "Dataset", "Preparation", "Split", "catalog", "digest", "fetch", "info", "load", "read_inputs",
    "read_labelled", "read_rows",
]  # fmt: skip
