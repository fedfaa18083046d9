"""`verify` finds whatever is damaged in a run, and nobody who only reads a run changes anything in it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from commands import call

import gpbackprop as gp
from gpbackprop import checkpoint
from gpbackprop.errors import CheckpointError
from gpbackprop.run import Run
from gpbackprop.verification import verify

ROOT = Path(gp.__file__).parent.parent
IRIS = ROOT / "gpbackprop" / "data" / "files" / "iris.csv"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OPENBLAS_NUM_THREADS": "1",
}


def command(*arguments):
    line = [sys.executable, "-m", "gpbackprop", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("verify") / "run"
    done = command("train", ROOT / "configs" / "iris.toml", "--epochs", 3, "--run-dir", place, "--device", "cpu", "-q")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def steps(run):
    return sorted((run / "checkpoints").glob("step-*.h5"))


def damage(path, at=3000):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def state(run):
    """All that there is, with bytes and times."""
    return {path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(run.rglob("*"))}


def test_a_whole_run_is_whole_and_says_what_is_resumed(run):
    done = command("verify", run)
    assert done.returncode == 0, done.stderr
    assert "all is whole (7 files)" in done.stdout
    assert f"resumes from {steps(run)[-1].name} (step 360, epoch 3): gpbackprop resume" in done.stdout
    facts = json.loads(command("verify", run, "--json").stdout)
    assert facts["whole"]
    assert [item["epoch"] for item in facts["checkpoints"]] == [1, 2, 3]
    assert facts["resume"]["step"] == 360


def test_a_damaged_newest_checkpoint_exits_with_4_and_the_next_older_is_named(run):
    damage(steps(run)[-1])
    done = command("verify", run)
    assert done.returncode == 4
    assert "its bytes do not match its SHA-256" in done.stdout
    assert f"resumes from {steps(run)[-2].name} (step 240, epoch 2)" in done.stdout
    assert "1 of 7 files damaged" in done.stdout
    facts = json.loads(command("verify", run, "--json").stdout)
    assert [item["whole"] for item in facts["checkpoints"]] == [True, True, False]
    assert not facts["whole"]


def test_one_checkpoint_file_is_verified_alone(run):
    path = steps(run)[0]
    assert command("verify", path).returncode == 0
    damage(path)
    assert command("verify", path).returncode == 4
    assert command("verify", run / "nothing").returncode == 4
    (run / "empty").mkdir()
    assert "is no run directory" in command("verify", run / "empty").stderr


def edit(name, change):
    """A change of a text file."""

    def apply(run):
        path = run / name
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return apply


def renamed(run):
    steps(run)[-1].rename(run / "checkpoints" / "step-000000999.h5")


def rewritten(**changes):
    """The newest checkpoint with other content: whole, and wrong."""

    def apply(run):
        path = steps(run)[-1]
        arrays = checkpoint.read(path).arrays()
        checkpoint.write(path, {name: changes.get(name, array) for name, array in arrays.items()})

    return apply


FAULTS = {
    "last.json cut": (edit("checkpoints/last.json", lambda text: text[:10]), "last.json"),
    "last.json of another step": (edit("checkpoints/last.json", lambda text: text.replace("360", "240")), "SHA-256"),
    "last.json of nothing": (edit("checkpoints/last.json", lambda text: text.replace("360.h5", "361.h5")), "not there"),
    "another file": (
        edit("checkpoints/last.json", lambda text: text.replace('"sha256": "', '"sha256": "0')),
        "SHA-256",
    ),
    "best.json of nothing": (lambda run: (run / "checkpoints/best.json").write_text("{}"), "not there"),
    "config not TOML": (edit("config.resolved.toml", lambda text: text + "=\n"), "not TOML"),
    "run.json cut": (edit("run.json", lambda text: text[:30]), "run.json"),
    "run.json a list": (edit("run.json", lambda text: "[]"), "no JSON object"),
    "a line of metrics": (edit("metrics.jsonl", lambda text: "{\n" + text), "line 1 is no JSON object"),
    "a name of another step": (renamed, "name of another"),
    "a config that is none": (rewritten(config=np.frombuffer(b"model = 1", "u1")), "config cannot be used"),
    "a shape of another network": (rewritten(**{"params/0-dense/b": np.zeros((1, 6), "f4")}), "found .1, 6. float32"),
    "a history that is short": (rewritten(history=np.frombuffer(b'{"epoch": 1}\n', "u1")), "history of 1 epochs"),
    "a history of nothing": (rewritten(history=np.frombuffer(b"[\n", "u1")), "line 1 is no JSON object"),
    "seeds of others": (rewritten(**{"progress/seeds": np.zeros(3, "i8")}), "progress/seeds"),
    "a pipe": (lambda run: [steps(run)[0].unlink(), os.mkfifo(run / "checkpoints/step-000000120.h5")], "a pipe"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_run_is_found(run, fault):
    apply, why = FAULTS[fault]
    assert not verify(run).damaged
    apply(run)
    before = state(run)
    found = verify(run).damaged
    assert found
    assert any(re.search(why, f"{finding.path.name} {finding.why}") for finding in found)
    assert state(run) == before


def test_what_a_resume_mends_is_told_and_is_no_damage(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tr')
    (run / "checkpoints" / "last.json").unlink()
    steps(run)[0].rename(run / "checkpoints" / "step-000000120.h5.damaged")
    report = verify(run)
    assert not report.damaged
    notes = " ".join(finding.note for finding in report.records)
    assert "last line is torn" in notes
    assert "missing; the newest" in notes
    assert "set aside by an earlier resume" in notes


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_a_run_that_goes_on_while_it_is_looked_at_is_not_taken_for_damaged(run, keep, when):
    """After a few looks it saves a step, the best one, and removes old ones."""
    content, later = checkpoint.read(steps(run)[-1]).arrays(), 400
    looks = 0

    def goes_on(finding):
        nonlocal looks
        looks += 1
        if looks == when:
            counted = content | {"progress/step": np.array(later, "i8")}
            checkpoint.save(run / "checkpoints", later, counted, keep, best={"value": 0.5})

    report = verify(run, goes_on)
    assert not report.damaged
    assert report.newest.facts["step"] in (360, later)
    assert looks > when


@pytest.mark.parametrize(
    ("left", "code"), [("all damaged", 4), ("all set aside", 0), ("last.json alone", 4), ("nothing", 0)]
)
def test_what_is_said_of_a_resume_is_what_it_does(run, left, code):
    for path in steps(run):
        damage(path) if left == "all damaged" else path.unlink()
    if left in ("all set aside", "nothing"):
        (run / "checkpoints" / "last.json").unlink()
    if left == "all set aside":
        (run / "checkpoints" / "step-000000360.h5.damaged").touch()
    said = call("verify", run, code=code).output
    if left == "nothing":
        assert "starts from the beginning" in said
        assert Run.open(run, "cpu").trainer.step == 0
    else:
        assert "no checkpoint is whole: copy one back" in said
        with pytest.raises(CheckpointError, match="no checkpoint is whole"):
            Run.open(run, "cpu")


@pytest.mark.parametrize(
    "arguments", [["evaluate"], ["predict"], ["inspect"], ["verify"], ["load"]], ids=lambda arguments: arguments[0]
)
def test_who_reads_a_damaged_run_changes_nothing_in_it(run, arguments):
    damage(steps(run)[-1])
    before = state(run)
    if arguments == ["load"]:
        assert gp.load(run).path == steps(run)[-2]
        with pytest.raises(CheckpointError):
            gp.load(steps(run)[-1])
    else:
        done = command(*arguments, run, *([IRIS] if arguments == ["predict"] else []))
        assert done.returncode == (4 if arguments == ["verify"] else 0), done.stderr
        if arguments != ["verify"]:
            assert "It stays step-000000360.h5; falling back to the next older checkpoint" in done.stderr
    assert state(run) == before


def test_resume_sets_the_damaged_one_aside(run):
    damage(steps(run)[-1])
    done = command("resume", run)
    assert done.returncode == 0, done.stderr
    assert (run / "checkpoints" / "step-000000360.h5.damaged").exists()


def test_inspect_shows_what_is_left_of_a_damaged_file_and_exits_with_4(run):
    path = steps(run)[-1]
    damage(path, at=path.stat().st_size - 60)
    done = command("inspect", path)
    assert done.returncode == 4
    assert "none of which is to be trusted" in done.stdout
    assert "step 360, epoch 3" in done.stdout
    assert "params/0-dense/W" in done.stdout
    assert "SHA-256" in done.stderr
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = command("inspect", path, "--json")
    assert done.returncode == 4
    facts = json.loads(done.stdout)
    assert not facts["whole"]
    assert "does not end as" in facts["why"]
    path.write_bytes(b"\x1b[31mnot a checkpoint at all, though it is long enough to be one")
    done = command("inspect", path)
    assert done.returncode == 4
    assert "not to be seen" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_what_is_not_read_as_a_whole_is_the_same_and_comes_in_parts(tmp_path):
    path, rng = tmp_path / "large.h5", np.random.default_rng(0)
    arrays = {f"params/{n}-dense/W": rng.normal(size=(1, 500, 1000)).astype("f4") for n in range(10)}
    checkpoint.write(path, {"config": b"name = 1", "history": b"", **arrays})
    tracemalloc.start()
    found = checkpoint.read(path, whole=False)
    assert found.config == "name = 1"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6 < path.stat().st_size / 3
    assert found.entries == checkpoint.read(path).entries
    for name, array in found.arrays().items():
        assert name in ("config", "history") or np.array_equal(array, arrays[name])


def test_a_file_that_becomes_shorter_while_it_is_looked_at_is_refused(tmp_path):
    path = tmp_path / "some.h5"
    checkpoint.write(path, {"config": b"", "history": b"", "params/W": np.ones((1, 10**6))})
    found = checkpoint.read(path, whole=False)
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match="has become shorter while it was read"):
        found.arrays()


def test_inspect_reads_no_parameter(run, monkeypatch):
    read = []
    array = checkpoint.Entry.array
    monkeypatch.setattr(checkpoint.Entry, "array", lambda entry: read.append(entry) or array(entry))
    call("inspect", run)
    assert read
    held = [piece for entry in read for piece in entry.pieces if isinstance(piece, memoryview)]
    assert not held  # these would be parts of the whole file in memory
    entries = checkpoint.read(steps(run)[-1]).section("params").values()
    assert not [entry for entry in read if entry in entries]


@pytest.mark.parametrize(
    "change",
    [
        ("units = 5", "units = 500000000000"),
        ("units = 5", "units = 1" + 400 * "0"),
        ("units = 5", "units = 1" + 5000 * "0"),
        ("population = 1\n", "population = 1000000000000\n"),
        ("units = 5", "units = 0"),
        ("model = [", "model = [" + 500 * "["),
    ],
    ids=range(6),
)
def test_a_config_that_no_machine_has_room_for_is_refused_before_anything_is_allocated(run, change):
    path = steps(run)[-1]
    arrays = checkpoint.read(path).arrays()
    config = arrays["config"].tobytes().decode().replace(*change)
    assert config.encode() != arrays["config"].tobytes()
    checkpoint.write(path, {**arrays, "config": config.encode()})
    why = "not what its config describes|population of 1000000000000|config cannot be used|nobody can make"
    with pytest.raises(CheckpointError, match=why):
        gp.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"history": np.frombuffer(b"[" * 100_000 + b"\n", "u1")},
        {"history": np.frombuffer(b"1\n", "u1")},
        {"progress/monitor": np.zeros(1)},
        {"progress/epoch": np.zeros(3, "i8")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_inspect_refuses_progress_and_history_that_nobody_wrote(run, change):
    rewritten(**change)(run)
    done = command("inspect", run)
    assert done.returncode == 4, done.stderr
    assert "its progress or history is not what gpbackprop writes" in done.stderr


def test_inspect_shows_nothing_that_a_terminal_obeys(run):
    path = steps(run)[-1]
    text = checkpoint.read(path).arrays()["preparation/text"].tobytes().replace(b"setosa", b"\\u001b[2J")
    rewritten(**{"preparation/text": np.frombuffer(text, "u1")})(run)
    done = command("inspect", run)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "?[2J" in done.stdout
