"""scripts/experiment.py by real subprocesses: each member is the run of its seed alone, whatever happens on the way."""

import csv
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpbackprop
from gpbackprop import checkpoint
from gpbackprop.config import read
from gpbackprop.errors import NumericalError, UsageError
from gpbackprop.run import Run, read_metrics

ROOT = Path(gpbackprop.__file__).parent.parent
SCRIPT = ROOT / "scripts" / "experiment.py"
CONFIGS = ROOT / "configs"
IRIS = [CONFIGS / "iris.toml", "--set", "train.epochs=6", "--seeds", "2"]
TWO = [*IRIS, "--vary", "optimizer.lr=0.02,0.1"]
ALONE = ["--task", 0, "--of", 1]  # one task for all: nothing is compared, which saves time
LOW, HIGH = "iris,optimizer.lr=0.02", "iris,optimizer.lr=0.1"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def start(*arguments, script=SCRIPT, **more) -> subprocess.Popen:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=ENVIRONMENT, **more
    )


def end(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def experiment(*arguments) -> subprocess.CompletedProcess:
    return end(start(*arguments, "--device", "cpu"))


def command(*arguments) -> dict:
    """What a command of gpbackprop prints with --json."""
    result = subprocess.run(
        [sys.executable, "-m", "gpbackprop", *map(str, arguments), "--json"],
        capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def bits(run: Path) -> dict[str, object]:
    """All that does not depend on the clock in a run directory."""
    files = [run / "config.toml", run / "config.resolved.toml", *(run / "checkpoints").iterdir()]
    clock = ("seconds", "samples_per_second")
    rows = [{name: x for name, x in row.items() if name not in clock} for row in read_metrics(run / "metrics.jsonl")]
    return {file.name: file.read_bytes() for file in files} | {"metrics": rows}


def all_bits(out: Path) -> dict[str, dict]:
    return {str(run.relative_to(out)): bits(run) for run in sorted(out.glob("*/seed-*"))}


def trained(path: Path, config, epochs: int | None = None) -> Run:
    run = Run.start(path, config, "as it was given", "cpu")
    run.train()
    return run


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The experiment of the line TWO that nobody disturbed, and what it said."""
    out = tmp_path_factory.mktemp("untouched")
    return out, experiment(*TWO, "--out", out)


# A member of a population.


@pytest.mark.parametrize("name", ["iris", "digits", "penguin-mass"])
def test_a_member_is_the_run_of_its_seed_alone_and_stays_so_when_it_is_resumed(tmp_path, name):
    config = read(CONFIGS / f"{name}.toml", ["train.epochs=3", "seed=[7, 2, 9]", "population=3"])
    population = trained(tmp_path / "population", config)
    member = population.member(1, tmp_path / "seed-2")
    alone = trained(tmp_path / "alone", dataclasses.replace(config, seed=2, population=1))
    checkpoint = f"step-{alone.trainer.step:09d}.h5"
    ours, theirs = bits(member.path), bits(alone.path)
    for what in (checkpoint, "last.json", "config.toml", "config.resolved.toml", "metrics"):
        assert ours[what] == theirs[what], what
    assert ours.get("best.json", theirs.get("best.json")) == theirs.get("best.json")
    assert member.outcome(0)["test"] == alone.outcome(0)["test"]
    for path in (member.path, alone.path):
        Run.open(path, "cpu", epochs=5).train()
    ours, theirs = bits(member.path), bits(alone.path)
    assert f"step-{alone.trainer.step // 3 * 5:09d}.h5" in theirs
    assert {name: ours[name] for name in theirs if name.startswith("step")} == {
        name: x for name, x in theirs.items() if name.startswith("step")
    }
    assert ours["metrics"] == theirs["metrics"]


def test_a_member_has_its_own_entry_of_a_hyper_parameter_given_as_a_list(tmp_path):
    settings = ["train.epochs=2", "population=2", "optimizer.lr=[0.01, 0.1]", "optimizer.momentum=[0.9, 0.5]"]
    config = read(CONFIGS / "iris.toml", settings)
    member = trained(tmp_path / "population", config).member(1, tmp_path / "member")
    own = dataclasses.replace(config.optimizer, lr=0.1, momentum=0.5)
    alone = trained(tmp_path / "alone", dataclasses.replace(config, seed=2, population=1, optimizer=own))
    assert bits(member.path)["step-000000240.h5"] == bits(alone.path)["step-000000240.h5"]


def test_a_member_takes_no_directory_that_is_there(tmp_path):
    config = read(CONFIGS / "iris.toml", ["train.epochs=1", "population=2"])
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="taken: is there already"):
        trained(tmp_path / "population", config).member(0, tmp_path / "taken")


def test_the_particles_of_a_swarm_are_no_members_to_take(tmp_path):
    settings = ["train.epochs=1", "train.batch_size=full", "population=2", 'optimizer={type="particle_swarm"}']
    population = trained(tmp_path / "population", read(CONFIGS / "iris.toml", settings))
    with pytest.raises(UsageError, match="population: all particles of a swarm make one network"):
        population.member(0, tmp_path / "member")
    assert not (tmp_path / "member").exists()


def test_a_member_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    population = trained(tmp_path / "population", read(CONFIGS / "iris.toml", ["train.epochs=1", "population=2"]))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Saver, "wait", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            population.member(0, tmp_path / "member")
    assert not (tmp_path / "member").exists()
    population.member(0, tmp_path / "member")
    assert sorted(os.listdir(tmp_path)) == ["member", "population"]


# The script.


def test_each_run_is_one_that_the_commands_take(untouched, tmp_path):
    out, result = untouched
    assert result.returncode == 0, result.stderr
    runs = sorted(out.glob("*/seed-*"))
    assert [str(run.relative_to(out)) for run in runs] == [f"{x}/seed-{k}" for x in (LOW, HIGH) for k in (1, 2)]
    assert not [*out.glob("*/population"), *out.glob("*/.*.tmp"), *out.glob("*/failed.txt")]
    run = tmp_path / "seed-2"
    shutil.copytree(runs[1], run)
    facts = json.loads((run / "run.json").read_text())
    assert facts["seeds"] == [2]
    assert facts["sessions"][0]["exit_code"] == 0
    assert command("inspect", run)
    assert command("evaluate", run)["rows"] == 30
    assert command("resume", run, "--epochs", "7")["epochs"] == 7
    flower = tmp_path / "flower.csv"
    flower.write_text("sepal_length_cm,sepal_width_cm,petal_length_cm,petal_width_cm\n5.1,3.5,1.4,0.2\n")
    predict = [sys.executable, "-m", "gpbackprop", "predict", str(run), str(flower)]
    assert "setosa" in subprocess.run(predict, capture_output=True, text=True, env=ENVIRONMENT, check=True).stdout


def test_the_summary_has_a_row_a_run_and_the_table_marks_the_best_mean(untouched):
    out, result = untouched
    with open(out / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["optimizer.lr"], row["seed"]) for row in rows] == [
        ("0.02", "1"),
        ("0.02", "2"),
        ("0.1", "1"),
        ("0.1", "2"),
    ]
    for row in rows:
        last = read_metrics(Path(row["run_dir"]) / "metrics.jsonl")[-1]
        assert (row["epochs"], row["steps"], float(row["train_loss"])) == ("6", "720", last["train_loss"])
    config = read(CONFIGS / "iris.toml", ["train.epochs=6", "seed=2", "optimizer.lr=0.1"])
    trainer = config.trainer("cpu")
    trainer.fit()
    assert float(rows[3]["test_accuracy"]) == trainer.evaluate("test")["accuracy"]
    means = {
        lr: sum(float(row["test_accuracy"]) for row in rows if row["optimizer.lr"] == lr) / 2 for lr in ("0.02", "0.1")
    }
    assert means["0.1"] > means["0.02"]
    marked = [line for line in result.stdout.splitlines() if line.startswith("lr=") and " * " in line]
    assert len(marked) == 1
    assert marked[0].startswith("lr=0.1 *")
    assert f"{means['0.1']:.4g}" in marked[0]


def test_a_loss_ranks_from_the_least_an_accuracy_from_the_most_and_equal_ones_by_their_loss(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from comparison import rank

    tables = {
        "a": [{"test_loss": 0.9, "test_accuracy": 0.5}],
        "b": [{"test_loss": 0.2, "test_accuracy": 0.5}],
        "c": [{"test_loss": 0.5, "test_accuracy": 0.8}, {"test_loss": 0.6, "test_accuracy": 0.4}],
        "not finished": [],
        "not a number": [{"test_loss": None, "test_accuracy": None}],
    }
    assert rank(tables, "test_loss") == ["b", "c", "a"]
    assert rank(tables, "test_accuracy") == ["c", "b", "a"]


def test_the_figure_is_left_out_without_matplotlib_and_the_script_says_so(untouched, tmp_path):
    out, result = untouched
    if importlib.util.find_spec("matplotlib"):
        assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('hidden by a test')")
        copy = tmp_path / "out"
        shutil.copytree(out, copy)
        (copy / "curves.png").unlink()
        path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
        line = [sys.executable, SCRIPT, *TWO, "--summarize", "--out", copy]
        result = subprocess.run(
            list(map(str, line)), capture_output=True, text=True, env=ENVIRONMENT | {"PYTHONPATH": path}
        )
        assert not (copy / "curves.png").exists()
    assert result.returncode == 0, result.stderr
    assert "no figure" in result.stdout


def test_the_same_line_again_trains_nothing_and_says_the_same(untouched):
    out, first = untouched
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed-*/**/*")}
    again = experiment(*TWO, "--out", out)
    assert (again.returncode, again.stderr, again.stdout) == (0, "", first.stdout)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/seed-*/**/*")} == before


def test_killed_at_any_moment_it_ends_with_the_same_bits(untouched, tmp_path):
    moments = [
        f"{LOW}/population/config.toml",  # before the first checkpoint
        f"{LOW}/population/checkpoints/step-000000240.h5",  # half-done
        f"{LOW}/.seed-1.tmp",  # while a member is cut out
        f"{LOW}/seed-1",  # between members
        f"{HIGH}/population/checkpoints/last.json",  # in the second variation
        f"{HIGH}/seed-2",  # at the very end
    ]
    killed = 0
    for moment in moments:
        process = start(*TWO, *ALONE, "--out", tmp_path, "--device", "cpu")
        while not (tmp_path / moment).exists() and process.poll() is None:
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        killed += process.returncode != 0
    assert killed >= 3  # some moments are short, and over before they are seen
    assert experiment(*TWO, *ALONE, "--out", tmp_path).returncode == 0
    assert all_bits(tmp_path) == all_bits(untouched[0])
    assert not [*tmp_path.glob("*/population"), *tmp_path.glob("*/.*.tmp")]


def test_what_a_kill_leaves_incomplete_is_made_again(untouched, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(untouched[0], out)
    shutil.rmtree(out / LOW / "seed-1" / "checkpoints")
    (out / LOW / "seed-2" / "config.resolved.toml").unlink()
    (out / LOW / ".seed-2.tmp").mkdir()
    (out / LOW / "population" / "checkpoints").mkdir(parents=True)
    (out / LOW / "population" / "checkpoints" / "step-000099999.h5").touch()
    (out / HIGH / "seed-1" / "result.json").write_text('{"epochs": 6, "ste')
    assert experiment(*TWO, "--out", out).returncode == 0
    assert all_bits(out) == all_bits(untouched[0])
    assert (out / "summary.csv").read_text().replace(str(out), str(untouched[0])) == (
        untouched[0] / "summary.csv"
    ).read_text()


def test_more_seeds_later_train_only_those_that_are_missing(untouched, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(untouched[0], out)
    before = all_bits(out)
    result = experiment(*TWO, "--seeds", "1,2,5", *ALONE, "--out", out)
    assert result.stderr.splitlines() == [f"{LOW}: epoch 6/6 of seed 5", f"{HIGH}: epoch 6/6 of seed 5"]
    after = all_bits(out)
    assert {name: after[name] for name in before} == before
    alone = read(CONFIGS / "iris.toml", ["train.epochs=6", "seed=5", "optimizer.lr=0.1"])
    name = "step-000000720.h5"
    assert after[f"{HIGH}/seed-5"][name] == bits(trained(tmp_path / "alone", alone).path)[name]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to answer")
def test_processes_stop_at_a_signal_go_on_and_end_with_the_same_bits(untouched, tmp_path):
    slow = [*TWO, "--set", "train.epochs=20000", "--set", "train.checkpoint_every=100000", "--jobs", "2"]
    process = start(*slow, "--out", tmp_path, "--device", "cpu")
    waiting = [tmp_path / name / "population" / "run.json" for name in (LOW, HIGH)]
    while not all(path.exists() for path in waiting) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    result = end(process)
    assert result.returncode == 75, result.stderr
    assert "the same line goes on" in result.stderr
    for name in (LOW, HIGH):
        assert [*(tmp_path / name / "population" / "checkpoints").glob("step-*.h5")]
        shutil.rmtree(tmp_path / name)
    assert experiment(*TWO, "--jobs", "2", *ALONE, "--out", tmp_path).returncode == 0
    assert all_bits(tmp_path) == all_bits(untouched[0])


def test_tasks_share_the_variations(untouched, tmp_path):
    for task, name in enumerate((LOW, HIGH)):
        assert experiment(*TWO, "--out", tmp_path, "--task", task, "--of", 2).returncode == 0
        assert [*(tmp_path / name).glob("seed-*")]
        assert task or not [*(tmp_path / HIGH).glob("seed-*")]
    assert not (tmp_path / "summary.csv").exists()
    result = experiment(*TWO, "--out", tmp_path, "--summarize")
    assert result.stdout.replace(str(tmp_path), str(untouched[0])) == untouched[1].stdout
    assert all_bits(tmp_path) == all_bits(untouched[0])


def test_a_seed_that_diverges_is_reported_and_stops_no_other(tmp_path):
    settings = ["train.epochs=3", "model.0.units=2", "model.0.activation=relu"]
    fate = {}
    for seed in range(1, 5):
        trainer = read(CONFIGS / "iris.toml", [*settings, "optimizer.lr=5", f"seed={seed}"]).trainer("cpu")
        try:
            fate[seed] = trainer.fit()[-1]["train_loss"]
        except NumericalError as error:
            fate[seed] = str(error)
    diverged = {seed: error for seed, error in fate.items() if isinstance(error, str)}
    if len(diverged) not in range(1, 4):
        pytest.skip("on this machine no seed differs from the others")
    line = [CONFIGS / "iris.toml", *(part for text in settings for part in ("--set", text)), "--seeds", "4"]
    result = experiment(*line, "--vary", "optimizer.lr=5,0.1", *ALONE, "--out", tmp_path)
    assert result.returncode == 1
    failed = [text for text in result.stderr.splitlines() if text.startswith("failed")]
    assert failed == [f"failed: iris,optimizer.lr=5: seed {seed}: {error}" for seed, error in diverged.items()]
    for seed, loss in fate.items():
        run = tmp_path / "iris,optimizer.lr=5" / f"seed-{seed}"
        assert run.exists() == (seed not in diverged)
        assert seed in diverged or read_metrics(run / "metrics.jsonl")[-1]["train_loss"] == loss
    assert len([*tmp_path.glob("iris,optimizer.lr=0.1/seed-*")]) == 4
    assert experiment(*line, "--vary", "optimizer.lr=5,0.1", "--out", tmp_path, "--summarize").returncode == 1


def test_a_variation_that_cannot_be_built_is_reported_and_stops_no_other(tmp_path):
    result = experiment(*IRIS, "--vary", "model.1.units=2,3", *ALONE, "--out", tmp_path)
    assert result.returncode == 1
    assert "failed: iris,model.1.units=2: " in result.stderr
    assert "Traceback" not in result.stderr
    assert len([*tmp_path.glob("iris,model.1.units=3/seed-*")]) == 2


def test_with_early_stopping_each_seed_ends_at_its_own_epoch(tmp_path):
    settings = ["train.epochs=60", "data.validation=0.2", "train.early_stopping.patience=2", "optimizer.lr=0.1"]
    line = [CONFIGS / "iris.toml", *(part for text in settings for part in ("--set", text)), "--seeds", "3"]
    assert experiment(*line, *ALONE, "--out", tmp_path).returncode == 0
    epochs = []
    for seed in (1, 2, 3):
        trainer = read(CONFIGS / "iris.toml", [*settings, f"seed={seed}"]).trainer("cpu")
        trainer.fit()
        epochs.append(trainer.epoch)
        assert len(read_metrics(tmp_path / "iris" / f"seed-{seed}" / "metrics.jsonl")) == trainer.epoch
    assert len(set(epochs)) > 1


def test_a_wrong_config_ends_before_anything_trains_and_all_mistakes_are_said(tmp_path):
    result = experiment(*IRIS, CONFIGS / "wine.tmol", "--vary", "optimizer.lr=0.1,-1,x", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "optimizer.lr: " in result.stderr
    assert "-1" in result.stderr
    assert "'x'" in result.stderr
    assert "wine.tmol" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_with_the_runs_of_another_config_is_left_alone(untouched, tmp_path):
    out = untouched[0]
    before = all_bits(out)
    result = experiment(*TWO, "--set", "model.0.units=7", "--out", out)
    assert result.returncode == 2
    assert (
        "seed-1: is of another config: model.0.units: 5, not 7; change it back, or give another --out" in result.stderr
    )
    assert all_bits(out) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--seeds", "none"], "expected how many"),
        (["--task", "2", "--of", "2"], "a task from 0"),
        (["--vary", "optimizer.lr"], "expected KEY=A,B"),
        ([CONFIGS / "iris.toml"], "there are two variations"),
        (["--set", "optimizer.lr=[0.1, 0.2]", "--set", "population=2"], "use --vary instead"),
        (["--set", "data.folds=3"], "use --vary data.fold=0,1,2 instead"),
        (["--set", 'optimizer={type="particle_swarm"}'], "a swarm, whose population is one network"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(tmp_path, wrong, message):
    result = experiment(*IRIS, *wrong, "--out", tmp_path)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_the_slurm_example_trains_its_share_and_goes_back_to_the_queue_when_time_is_up(tmp_path):
    text = (ROOT / "scripts" / "slurm_array.sh").read_text()
    for there, here in [
        ("scripts/experiment.py configs/digits.toml", f"{SCRIPT} {CONFIGS}/iris.toml --set train.epochs=$EPOCHS"),
        ("model.0.units=32,128", "model.0.units=3,5"),
        ("--seeds 5", "--seeds 2 --device cpu"),
    ]:
        assert text.count(there) == 1
        text = text.replace(there, here)
    (tmp_path / "array.sh").write_text(text)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    for name in ("python", "scontrol"):
        (tmp_path / name).chmod(0o755)
    slurm = {
        f"SLURM_ARRAY_{name}": x
        for name, x in zip(("JOB_ID", "TASK_ID", "TASK_MIN", "TASK_COUNT"), "9644", strict=True)
    }
    environment = ENVIRONMENT | slurm | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    bash = ["bash", str(tmp_path / "array.sh")]

    element = subprocess.Popen(bash, cwd=tmp_path, env=environment | {"EPOCHS": "100000"}, stderr=subprocess.PIPE)
    while not [*tmp_path.glob("runs/*/*/population/run.json")] and element.poll() is None:
        time.sleep(0.01)
    element.send_signal(signal.SIGUSR1)
    assert b"goes on from there" in element.communicate(timeout=60)[1]
    assert element.returncode == 75
    assert (tmp_path / "asked").read_text() == "requeue 9_6\n"

    shutil.rmtree(tmp_path / "runs")
    result = subprocess.run(bash, cwd=tmp_path, env=environment | {"EPOCHS": "2"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len([*tmp_path.glob("runs/digits-experiment/iris,*/seed-*")]) == 2
    assert (tmp_path / "asked").read_text() == "requeue 9_6\n"
    summary = subprocess.run(
        [*bash, "--summarize"], cwd=tmp_path, env=environment | {"EPOCHS": "2"}, capture_output=True
    )
    assert summary.returncode == 0
    assert (tmp_path / "runs" / "digits-experiment" / "summary.csv").exists()
