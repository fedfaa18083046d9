"""Checkpoints of every format version, as they were written once, still load with the same bits."""

import importlib.util
import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import gpbackprop as gp
from gpbackprop import checkpoint
from gpbackprop.checkpoint import format
from gpbackprop.config import parse
from gpbackprop.errors import CheckpointError
from gpbackprop.restoring import restore

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.h5"))
MODELS = [path for path in FILES if not path.stem.endswith("arrays")]


def contents(path):
    found = importlib.util.spec_from_file_location("write", GOLDEN / "write.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.contents(path)


def test_there_is_a_golden_file_of_every_version():
    assert {int(path.name.split("-")[1]) for path in FILES} == set(range(1, format.VERSION + 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_file_has_the_same_bits_in_every_array(path):
    assert contents(path) == json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_libhdf5_finds_the_same_in_a_golden_file(path):
    found = checkpoint.read(path).arrays()
    with h5py.File(io.BytesIO(path.read_bytes())) as file:
        for name, array in found.items():
            np.testing.assert_array_equal(array, file[name][()], strict=True)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_golden_model_loads_and_predicts(path):
    model = gp.load(path)
    data = gp.data.load(model.config.data)
    assert model.evaluate(data.splits["test"])["accuracy"] is not None
    found = checkpoint.read(path).arrays("params")
    for name, view in model.network.params.views(model.network.w).items():
        np.testing.assert_array_equal(view, found[name], strict=True)


@pytest.mark.parametrize("version", [format.VERSION + 1, 1000])
def test_a_newer_version_is_refused_with_what_to_do(tmp_path, monkeypatch, version):
    monkeypatch.setattr(format, "VERSION", version)
    checkpoint.write(tmp_path / "a.h5", {"config": b""})
    monkeypatch.undo()
    with pytest.raises(
        CheckpointError, match=rf"version {version}, .* reads up to {format.VERSION}; .*upgrade"
    ) as error:
        checkpoint.read(tmp_path / "a.h5")
    assert not isinstance(error.value, checkpoint.DamagedError)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_training_goes_on_from_a_golden_checkpoint(path):
    found = checkpoint.read(path)
    trainer = parse(found.config, path.name).trainer("cpu")
    restore(trainer, found)
    epochs = trainer.epoch
    assert epochs
    assert [row["epoch"] for row in trainer.fit(epochs + 1)] == list(range(1, epochs + 2))
