"""The command line, as a user meets it: real processes, their streams and their exit codes."""

import errno
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import call

import gpbackprop as gp
from gpbackprop.cli import files
from gpbackprop.cli.group import COMMANDS
from gpbackprop.errors import UsageError

PACKAGE = Path(gp.__file__).parent
IRIS = PACKAGE / "data" / "files" / "iris.csv"
CONFIG = """\
name = "small"
seed = 1
[data]
source = "iris"
test = 0.2
validation = 0.1
[[model]]
type = "dense"
units = 8
activation = "tanh"
[[model]]
type = "dense"
units = 3
[loss]
type = "softmax_cross_entropy"
[optimizer]
type = "sgd"
lr = 0.05
momentum = 0.9
[train]
epochs = 4
batch_size = 16
"""
posix = pytest.mark.skipif(os.name == "nt", reason="signals and terminals of POSIX")
EVERY_HELP = [[], *([name] for name in COMMANDS), ["data", "list"], ["data", "info"], ["data", "fetch"]]


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "PYTHONIOENCODING")}
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **changes}


def gpbackprop(*arguments, cwd, code=0, **changes):
    """The finished process of a command that is to exit with `code`."""
    command = [sys.executable, "-m", "gpbackprop", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment(**changes), capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == code, f"{arguments} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def started(*arguments, cwd, options=(), **changes):
    command = [sys.executable, *options, "-m", "gpbackprop", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=cwd, env=environment(**changes), **pipes)


def parameters(run: Path) -> bytes:
    """The bytes of the newest checkpoint's parameters and optimizer state."""
    found = gp.checkpoint.latest(run / "checkpoints")
    return b"".join(a.tobytes() for room in ("params", "optimizer") for a in found.arrays(room).values())


@pytest.fixture
def here(tmp_path):
    """An empty directory with the config small.toml."""
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a finished run in `run`, one of three members in `three`, and the rows iris.csv."""
    path = tmp_path_factory.mktemp("trained")
    (path / "small.toml").write_text(CONFIG)
    (path / "iris.csv").write_bytes(IRIS.read_bytes())
    for name, options in (("run", []), ("three", ["--population", 3])):
        gpbackprop("train", "small.toml", "--run-dir", name, "--device", "cpu", *options, cwd=path)
    return path


# Help.


@pytest.mark.parametrize("command", EVERY_HELP, ids=" ".join)
def test_help_comes_without_the_heavy_packages_and_h_is_help(command, tmp_path):
    process = started(*command, "-h", cwd=tmp_path, options=["-X", "importtime"])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("Usage: gpbackprop")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines() if "|" in line}
    assert "click" in imported
    assert not imported & {"numpy", "h5py", "pydantic", "cupy", "tqdm"}


def test_the_version_is_that_of_the_package(tmp_path):
    assert gpbackprop("--version", cwd=tmp_path).stdout == f"gpbackprop {gp.__version__}\n"


def test_no_command_at_all_shows_the_help_and_is_a_usage_error(tmp_path):
    done = gpbackprop(cwd=tmp_path, code=2)
    assert done.stderr.startswith("Usage: gpbackprop")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "x"], "did you mean 'train'"),
        (["train", "x.toml", "--epoch", "3"], "--epochs"),
        (["train"], "CONFIG"),
        (["data", "lits"], "list"),
        (["init", "digit"], "did you mean 'digits'"),
        (["train", "small.toml", "--resume"], "--run-dir"),
        (["train", "smal.toml"], "did you mean 'small.toml'"),
        (["train", "small.toml", "--set", "lr"], "KEY=VALUE"),
        (["train", "small.toml", "--epochs", "0"], "train.epochs"),
        (["resume", "nothing"], "nothing"),
        (["evaluate", "m", "--split", "test", "--data", "f.csv"], "exclude"),
        (["predict", "m", "f.csv", "--output", "f.xls"], ".npz"),
    ],
)
def test_a_usage_error_says_what_is_wrong_and_exits_with_2(arguments, said, here):
    done = gpbackprop(*arguments, cwd=here, code=2)
    assert said in done.stderr
    assert done.stderr.startswith("error:")
    assert done.stdout == ""


# Training.


def test_training_says_results_on_stdout_and_one_line_an_epoch_on_stderr(here):
    done = gpbackprop("train", "small.toml", "--device", "cpu", cwd=here)
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["1/4", "2/4", "3/4", "4/4"]
    for said in ("epoch 1 to 4", "accuracy", "validation", "test", "gpbackprop evaluate runs/small", "step-0000000"):
        assert said in done.stdout
    run = here / "runs" / "small"
    model = re.search(r"^model +(.*)$", done.stdout, re.M)[1]
    assert (here / model).is_file()
    assert (run / "config.toml").read_text() == CONFIG
    assert json.loads((run / "run.json").read_text())["sessions"][0]["exit_code"] == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert (run / "log.txt").read_text().count("epoch") == 4


def test_a_second_run_of_the_same_name_gets_a_directory_of_its_own(here):
    for name in ("small", "small-2"):
        gpbackprop("train", "small.toml", "--epochs", 1, "-q", "--device", "cpu", cwd=here)
        assert (here / "runs" / name / "run.json").is_file()


def test_quiet_silences_progress_and_json_is_one_strict_object(here):
    done = gpbackprop("train", "small.toml", "--device", "cpu", "-q", "--json", cwd=here)
    assert done.stderr == ""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    outcome = json.loads(done.stdout, parse_constant=refuse)
    assert set(outcome) == {"run_dir", "device", "epochs", "steps", "seconds", "train", "validation", "test"}
    assert outcome["epochs"] == 4
    assert 0 <= outcome["test"]["accuracy"] <= 1


def test_options_are_settings_of_the_same_schema(here):
    options = ["--epochs", 2, "--seed", 5, "--population", 2, "--set", "optimizer.lr=0.5", "--set", "model.0.units=3"]
    gpbackprop("train", "small.toml", "--device", "cpu", "-q", "--run-dir", "r", *options, cwd=here)
    config = gp.config.read(here / "r" / "config.resolved.toml")
    assert (config.train.epochs, config.seed, config.population) == (2, 5, 2)
    assert (config.optimizer.lr, config.model[0].units) == (0.5, 3)


def test_auto_says_what_it_took(here):
    done = gpbackprop("train", "small.toml", "--epochs", 1, cwd=here, CUDA_VISIBLE_DEVICES="")
    assert re.match(r"device cpu: auto found no CUDA \(.+\)", done.stderr)


def test_the_line_of_a_batch_script_starts_continues_and_reports(here):
    line = ["train", "small.toml", "--run-dir", "r", "--resume", "--device", "cpu", "--json"]
    outcomes = [
        json.loads(gpbackprop(*line, *more, cwd=here).stdout) for more in ([], ["--epochs", 6], ["--epochs", 6])
    ]
    assert [outcome["epochs"] for outcome in outcomes] == [4, 6, 6]
    assert outcomes[1]["test"] == outcomes[2]["test"]
    whole = gpbackprop("train", "small.toml", "--run-dir", "w", "--device", "cpu", "--epochs", 6, cwd=here)
    assert "test" in whole.stdout
    assert parameters(here / "r") == parameters(here / "w")


def test_a_run_is_not_continued_with_another_config_nor_written_over(here):
    line = ["train", "small.toml", "--run-dir", "r", "--device", "cpu", "--epochs", 1]
    gpbackprop(*line, cwd=here)
    done = gpbackprop(*line, "--resume", "--seed", 7, "--set", "optimizer.lr=0.1", cwd=here, code=2)
    assert "optimizer.lr: 0.1, not 0.05" in done.stderr
    assert "seed: 7, not 1" in done.stderr
    assert "--resume" in gpbackprop(*line, cwd=here, code=2).stderr


def test_more_epochs_given_once_hold_for_the_next_resume_too(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    gpbackprop("resume", "run", "--epochs", 5, "-q", cwd=tmp_path)
    assert gp.config.read(tmp_path / "run" / "config.resolved.toml").train.epochs == 5
    done = gpbackprop("resume", "run", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["epochs"] == 5
    assert "complete" in done.stderr


def test_a_run_on_a_file_of_its_own_goes_on_from_any_directory(here):
    (here / "rows.csv").write_bytes(IRIS.read_bytes())
    (here / "own.toml").write_text(CONFIG.replace('source = "iris"', 'source = "rows.csv"'))
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    gpbackprop("train", "../own.toml", "--run-dir", "r", "--device", "cpu", "-q", cwd=elsewhere)
    done = gpbackprop("resume", "elsewhere/r", "--epochs", 5, "--json", cwd=here)
    assert json.loads(done.stdout)["epochs"] == 5
    (here / "rows.csv").write_text(IRIS.read_text().replace("5.1,3.5", "5.2,3.5", 1))
    assert "differ" in gpbackprop("resume", "elsewhere/r", "--epochs", 6, cwd=here, code=3).stderr


def test_a_population_is_reported_by_mean_and_spread(trained):
    done = gpbackprop("evaluate", "three", "-q", cwd=trained)
    assert re.search(r"test +\d\.\d+ ± ", done.stdout)
    assert "3 members" in done.stdout
    plain = gpbackprop("evaluate", "three", "-q", cwd=trained, PYTHONIOENCODING="ascii")
    assert re.search(r"test +\d\.\d+ \+- ", plain.stdout)


def test_a_screen_without_unicode_gets_an_ascii_curve(here):
    done = gpbackprop("train", "small.toml", "-q", "--device", "cpu", cwd=here, PYTHONIOENCODING="ascii")
    assert done.stdout.isascii()
    assert re.search(r"train loss +@", done.stdout)


# Exit codes.


@pytest.mark.parametrize(
    ("code", "settings", "said"),
    [
        (2, ["model.1.units=5"], "units = 3"),
        (3, ["data.source=nowhere.csv"], "nowhere.csv"),
        (3, ["data.source=irsi"], "did you mean 'iris'"),
        (6, ["optimizer.lr=1e38"], "learning rate"),
        (2, ["optimizer.lr=1e300"], "command line: optimizer.lr: found 1e+300, which is too large for float32"),
        (2, ["seed=9223372036854775808"], "command line: seed: found 9223372036854775808"),
        (7, ["model.0.units=1000000000000"], "out of memory"),
    ],
)
def test_each_kind_of_failure_has_its_exit_code_and_leaves_no_traceback(code, settings, said, here):
    options = [part for setting in settings for part in ("--set", setting)]
    done = gpbackprop("train", "small.toml", "--device", "cpu", *options, cwd=here, code=code)
    assert said in done.stderr
    assert done.stdout == ""


def test_a_device_that_is_not_there_exits_with_5(here):
    assert "cuda" in gpbackprop("train", "small.toml", "--device", "cuda:99", cwd=here, code=5).stderr


def test_a_damaged_or_missing_checkpoint_exits_with_4(trained, tmp_path):
    newest = max((trained / "run" / "checkpoints").glob("step-*.h5"))
    (tmp_path / "half.h5").write_bytes(newest.read_bytes()[:-100])
    for command in (["evaluate", "half.h5"], ["inspect", "half.h5"], ["predict", "half.h5", IRIS], ["inspect", "none"]):
        gpbackprop(*command, cwd=tmp_path, code=4)


BREAK = """
import sys
from gpbackprop.{module} import {name}
def broken(*a, **k): raise RuntimeError("a tooth broke")
{name}.{method} = broken
from gpbackprop.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "name", "method", "where"),
    [("trainer", "Trainer", "fit", "log.txt"), ("plan", "Plan", "__init__", "-v")],
)
def test_an_internal_error_is_one_sentence_and_its_traceback_is_kept(module, name, method, where, here):
    code = BREAK.format(module=module, name=name, method=method)
    command = [sys.executable, "-c", code, "train", "small.toml", "--run-dir", "r", "--device", "cpu"]
    options = {"cwd": here, "env": environment(), "capture_output": True, "encoding": "utf-8", "timeout": 60}
    done = subprocess.run(command, **options)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*RuntimeError: a tooth broke.*\n", done.stderr)
    assert where in done.stderr
    if where == "log.txt":
        assert "Traceback" in (here / "r" / "log.txt").read_text()
        assert json.loads((here / "r" / "run.json").read_text())["sessions"][0]["exit_code"] == 1
    else:
        assert "Traceback" in subprocess.run([*command, "-v"], **options).stderr


def test_a_directory_that_cannot_be_written_is_said_in_a_sentence(here):
    (here / "taken").write_text("a file, no directory")
    done = gpbackprop("train", "small.toml", "--run-dir", "taken/r", "--device", "cpu", cwd=here, code=2)
    assert "taken" in done.stderr


# Signals, pipes and terminals.


def wait_for(holds, what, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR1", 75)])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(name, code, here):
    line = ["train", "small.toml", "--device", "cpu", "-q", "--set", "train.checkpoint_every=1000", "--epochs", 2000]
    process = started(*line, "--run-dir", "cut", cwd=here)
    metrics = here / "cut" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size, "the first epoch")
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "gpbackprop resume cut" in err
    assert "Traceback" not in err
    assert out == ""
    stopped = gp.checkpoint.latest(here / "cut" / "checkpoints").arrays("progress")
    end = int(stopped["epoch"]) + 3
    gpbackprop("resume", "cut", "--epochs", end, "-q", cwd=here)
    gpbackprop(*line[:-1], end, "--run-dir", "whole", cwd=here)
    assert parameters(here / "cut") == parameters(here / "whole")


@posix
@pytest.mark.parametrize("module", ["click", "numpy", "pydantic", "h5py", "gpbackprop.trainer"])
def test_a_signal_while_packages_are_imported_ends_the_program_without_a_traceback(module, here):
    process = started(
        "train", "small.toml", "--device", "cpu", "--epochs", 100000, cwd=here, options=["-X", "importtime"]
    )
    seen = re.compile(rf"\|\s+{re.escape(module)}\b")
    number, code = (signal.SIGTERM, 75) if module == "numpy" else (signal.SIGINT, 130)
    for line in process.stderr:
        if seen.search(line):
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err[-500:]
    assert "Traceback" not in err
    assert "ignored" not in err


@posix
def test_a_reader_that_goes_away_ends_the_command_quietly(trained, tmp_path):
    head, *rows = IRIS.read_text().splitlines()
    (tmp_path / "many.csv").write_text("\n".join([head, *rows * 100]))
    process = started("predict", trained / "run", "many.csv", "-q", "--probabilities", cwd=tmp_path)
    assert process.stdout.readline().startswith("species")
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


# Makes the terminal on its stdin its own, so that Ctrl-C reaches it, and becomes the command.
TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, sys.argv[1:])
"""


def in_terminal(arguments, cwd, until="", keys=b"", **changes):
    """What a command shows on a terminal of its own, and its exit code; `keys` are typed once `until` is seen."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    command = [sys.executable, "-c", TERMINAL, sys.executable, "-m", "gpbackprop", *map(str, arguments)]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(command, cwd=cwd, env=environment(TERM="xterm", **changes), **streams)
    os.close(theirs)
    shown, end = b"", time.monotonic() + 60
    while True:
        if not select.select([ours], [], [], max(0, end - time.monotonic()))[0]:
            process.kill()
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
        if keys and until.encode() in shown:
            os.write(ours, keys)
            keys = b""
    os.close(ours)
    return shown.decode(), process.wait(timeout=60)


@posix
def test_ctrl_c_on_a_terminal_stops_the_bar_saves_and_says_how_to_go_on(here):
    line = ["train", "small.toml", "--device", "cpu", "--epochs", 100000, "--run-dir", "r"]
    shown, code = in_terminal(line, here, until="validation accuracy", keys=b"\x03")
    assert code == 130
    assert "step/s" in shown
    assert "gpbackprop resume r" in shown
    assert "Traceback" not in shown
    assert gp.checkpoint.latest(here / "r" / "checkpoints")


FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full, a disk without room")


def ended(*arguments, cwd, **streams):
    """The exit code of a command, whose stdout or stderr is `FULL` or closed (None)."""
    closed = [number for number, name in enumerate(("stdin", "stdout", "stderr")) if streams.get(name, FULL) is None]
    command = [sys.executable, "-m", "gpbackprop", *map(str, arguments)]
    with FULL.open("w") as full:
        given = {name: full for name, stream in streams.items() if stream is FULL}
        close = (lambda: [os.close(number) for number in closed]) if closed else None
        return subprocess.run(command, cwd=cwd, env=environment(), preexec_fn=close, timeout=60, **given).returncode


@full_disk
def test_training_goes_on_where_stderr_takes_no_more_and_the_log_says_so(here):
    line = ["train", "small.toml", "--device", "cpu", "--run-dir"]
    assert ended(*line, "r", cwd=here, stderr=FULL) == 0
    said = (here / "r" / "log.txt").read_text()
    assert said.count("stderr: could not be written: No space left on device. Training goes on") == 1
    assert "epoch 4/4" in said
    assert ended(*line, "r", cwd=here, stderr=FULL) == 2
    assert ended(*line, "closed", cwd=here, stdin=None, stdout=None, stderr=None) == 0
    assert parameters(here / "closed") == parameters(here / "r")


@full_disk
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "line",
    ["evaluate run", "predict run iris.csv", "-h", "--version", "train -h", "data info -h", "completion bash", ""],
)
def test_a_result_that_finds_no_room_is_an_error_of_the_call(trained, line, unbuffered):
    asked = {} if line else {"_GPBACKPROP_COMPLETE": "zsh_complete", "COMP_WORDS": "gpbackprop tr", "COMP_CWORD": "1"}
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "gpbackprop", *line.split()]
        pipes = {"stdout": full, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        given = environment(PYTHONUNBUFFERED=unbuffered, **asked)
        done = subprocess.run(command, cwd=trained, env=given, timeout=60, **pipes)
    assert (
        done.stderr == "error: stdout: could not be written: No space left on device; make room, or lead it elsewhere\n"
    )
    assert done.returncode == 2


@posix
def test_colour_is_left_out_where_no_color_says_so(here):
    shown, code = in_terminal(["train", "none.toml"], here)
    assert (code, "\x1b[" in shown) == (2, True)
    shown, code = in_terminal(["train", "none.toml"], here, NO_COLOR="1")
    assert (code, "\x1b[" in shown) == (2, False)


# Models.


def test_evaluate_prints_metrics_and_confusion_and_json(trained):
    done = gpbackprop("evaluate", "run", "-q", cwd=trained)
    assert "setosa" in done.stdout
    facts = json.loads(gpbackprop("evaluate", "run", "--json", cwd=trained).stdout)
    assert facts["data"] == "test"
    assert facts["rows"] == np.sum(facts["results"]["confusion"]) == 30
    model = gp.load(trained / "run")
    expected = model.evaluate(gp.data.load("iris", test=0.2, validation=0.1).splits["test"])
    assert facts["results"]["loss"] == expected["loss"]


def test_evaluate_takes_a_file_a_split_and_the_best_checkpoint(trained):
    facts = json.loads(gpbackprop("evaluate", "run", "--data", "iris.csv", "--json", cwd=trained).stdout)
    assert facts["rows"] == 150
    facts = json.loads(gpbackprop("evaluate", "run", "--split", "train", "--best", "--json", cwd=trained).stdout)
    assert facts["rows"] == 105
    best = json.loads((trained / "run" / "checkpoints" / "best.json").read_text())["file"]
    assert facts["checkpoint"].endswith(best)


def test_predict_gives_class_names_as_they_were_given(trained):
    done = gpbackprop("predict", "run", "iris.csv", "-q", cwd=trained)
    head, *rows = done.stdout.splitlines()
    assert head == "species"
    given = [line.rsplit(",", 1)[1] for line in IRIS.read_text().splitlines()[1:]]
    assert len(rows) == len(given)
    assert np.mean([a == b for a, b in zip(rows, given, strict=True)]) > 0.8


def test_predict_gives_probabilities_members_and_files(trained, tmp_path):
    line = ["predict", trained / "three", trained / "iris.csv", "--probabilities", "-q"]
    head, *rows = gpbackprop(*line, "--member", 2, cwd=tmp_path).stdout.splitlines()
    assert head == "species,p(setosa),p(versicolor),p(virginica)"
    p = np.array([row.split(",")[1:] for row in rows], float)
    assert np.allclose(p.sum(axis=1), 1, atol=1e-5)
    gpbackprop(*line, "--output", "all.csv", cwd=tmp_path)
    assert (tmp_path / "all.csv").read_text().startswith("species[0],p(setosa)[0],")
    gpbackprop(*line, "--output", "all.npz", cwd=tmp_path)
    with np.load(tmp_path / "all.npz") as arrays:
        assert arrays["predictions"].shape == (3, 150)
        assert np.array_equal(arrays["probabilities"][2], p.astype(np.float32))
        assert arrays["classes"].tolist() == ["setosa", "versicolor", "virginica"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "all.npz"]
    assert "0 to 2" in gpbackprop(*line, "--member", 3, cwd=tmp_path, code=2).stderr


def test_predict_of_a_regression_gives_numbers_in_the_units_of_the_target(here):
    line = ["train", "r.toml", "--device", "cpu", "-q", "--run-dir", "r"]
    (here / "far.csv").write_text("x,metres\n" + "".join(f"{x},{1000 + 50 * x}\n" for x in range(40)))
    text = CONFIG.replace('source = "iris"', 'source = "far.csv"\nnormalize_targets = "standard"')
    text = text.replace("units = 3", "units = 1").replace("softmax_cross_entropy", "mean_squared_error")
    (here / "r.toml").write_text(text)
    gpbackprop(*line, cwd=here)
    predict = ["predict", "r", "far.csv"]
    head, *rows = gpbackprop(*predict, cwd=here).stdout.splitlines()
    assert head == "metres"
    assert np.corrcoef(np.array(rows, float), np.arange(40))[0, 1] > 0.9
    assert 1500 < np.mean(np.array(rows, float)) < 2500
    assert "--probabilities" in gpbackprop(*predict, "--probabilities", cwd=here, code=2).stderr


def test_inspect_needs_one_checkpoint_file_and_no_data(here):
    (here / "rows.csv").write_bytes(IRIS.read_bytes())
    (here / "own.toml").write_text(CONFIG.replace('source = "iris"', 'source = "rows.csv"'))
    gpbackprop("train", "own.toml", "--run-dir", "r", "--device", "cpu", "-q", cwd=here)
    (here / "rows.csv").unlink()
    max((here / "r" / "checkpoints").glob("step-*.h5")).rename(here / "model.h5")
    done = gpbackprop("inspect", "model.h5", cwd=here)
    for said in ("0-dense", "67 parameters", "4 of 4 epochs", "setosa", "petal_length_cm", "normalize standard"):
        assert said in done.stdout
    facts = json.loads(gpbackprop("inspect", "model.h5", "--json", cwd=here).stdout)
    assert [layer["parameters"] for layer in facts["layers"]] == [40, 27]
    assert [layer["output"] for layer in facts["layers"]] == [[8], [3]]
    assert facts["layers"][0]["arrays"] == {"W": [4, 8], "b": [8]}


def test_inspect_shows_layers_inside_layers_and_frozen_parameters(here):
    inner = '[[model]]\ntype = "residual"\nlayers = [{type = "dense", units = 8, freeze = ["b"]}]\n'
    (here / "small.toml").write_text(
        CONFIG.replace('[[model]]\ntype = "dense"\nunits = 3', inner + '[[model]]\ntype = "dense"\nunits = 3')
    )
    gpbackprop("train", "small.toml", "--run-dir", "r", "--device", "cpu", "-q", "--epochs", 1, cwd=here)
    facts = json.loads(gpbackprop("inspect", "r", "--json", cwd=here).stdout)
    assert [layer["path"] for layer in facts["layers"]] == ["0-dense", "1-residual", "1-residual/0-dense", "2-dense"]
    assert [layer["parameters"] for layer in facts["layers"]] == [40, 0, 72, 27]
    assert facts["layers"][2]["frozen"] == ["b"]


# The rest.


def test_devices_names_the_cpu_and_the_reason_where_cuda_cannot_be_used(tmp_path):
    said = json.loads(gpbackprop("devices", "--json", cwd=tmp_path, CUDA_VISIBLE_DEVICES="").stdout)
    found = said["devices"]
    assert set(said) == {"devices", "compiler"}
    assert found[0] == {"name": "cpu", "usable": True, "description": "NumPy on the CPU"}
    assert found[1]["name"] == "cuda"
    assert not found[1]["usable"]
    assert found[1]["description"]
    assert "cpu" in gpbackprop("devices", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("package", "usable", "words"),
    [
        (SimpleNamespace(__version__="0.99.1"), True, "by llvmlite 0.99.1"),
        (None, False, 'install it by pip install "gpbackprop[compile]"'),
    ],
    ids=["there", "missing"],
)
def test_devices_says_whether_steps_on_the_cpu_can_be_compiled(package, usable, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", package)
    found = json.loads(call("devices", "--json").stdout)["compiler"]
    assert (found["name"], found["usable"]) == ("train.compile", usable)
    assert words in found["description"]
    line = next(line for line in call("devices").stdout.splitlines() if line.startswith("train.compile"))
    assert re.fullmatch(rf"train\.compile  {'yes' if usable else 'no '}     .*{re.escape(words)}.*", line)


def test_data_lists_and_describes_what_has_a_name(tmp_path):
    assert {"iris", "mnist", "xor"} <= set(re.findall(r"^\w+", gpbackprop("data", "list", cwd=tmp_path).stdout, re.M))
    assert "CC BY 4.0" in gpbackprop("data", "info", "iris", cwd=tmp_path).stdout
    assert json.loads(gpbackprop("data", "info", "wine", "--json", cwd=tmp_path).stdout)["rows"] == "178"
    assert "did you mean 'iris'" in gpbackprop("data", "info", "irsi", cwd=tmp_path, code=3).stderr
    assert "nothing to fetch" in gpbackprop("data", "fetch", "iris", cwd=tmp_path, code=3).stderr


def test_init_writes_a_config_that_trains_and_writes_over_nothing(tmp_path):
    assert "mnist-nielsen" in gpbackprop("init", cwd=tmp_path).stdout
    gpbackprop("init", "mazur", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mazur.csv", "mazur.toml"]
    gpbackprop("train", "mazur.toml", "--epochs", 1, "--device", "cpu", "-q", cwd=tmp_path)
    (tmp_path / "mazur.toml").write_text("mine")
    assert "--force" in gpbackprop("init", "mazur", cwd=tmp_path, code=2).stderr
    assert (tmp_path / "mazur.toml").read_text() == "mine"
    gpbackprop("init", "mazur", "--force", cwd=tmp_path)
    assert (tmp_path / "mazur.toml").read_text() != "mine"


@pytest.mark.parametrize(("command", "option"), [("init digits", "--output"), ("trace configs/mazur.toml", "--html")])
def test_what_a_full_disk_refuses_is_an_error_that_leaves_nothing(command, option, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(PACKAGE.parent)
    monkeypatch.setattr(files.os, "replace", full)
    path = tmp_path / "out"
    with pytest.raises(UsageError, match=rf"^{option} .*out: cannot be written: No space left on device$"):
        call(*command.split(), option, path)
    assert not list(tmp_path.iterdir())


def test_init_writes_to_stdout_for_a_dash(tmp_path):
    said = gpbackprop("init", "xor", "--output", "-", cwd=tmp_path).stdout
    gpbackprop("init", "xor", cwd=tmp_path)
    assert said == (tmp_path / "xor.toml").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["xor.toml"]
    assert "mazur.csv" in gpbackprop("init", "mazur", "--output", "-", cwd=tmp_path).stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_prints_a_script_and_the_script_gets_words(shell, tmp_path):
    assert "_GPBACKPROP_COMPLETE" in gpbackprop("completion", shell, cwd=tmp_path).stdout
    asked = {"_GPBACKPROP_COMPLETE": f"{shell}_complete", "COMP_WORDS": "gpbackprop tr", "COMP_CWORD": "1"}
    if shell == "fish":
        asked["COMP_CWORD"] = "tr"
    assert "train" in gpbackprop(cwd=tmp_path, **asked).stdout


def test_numbers_that_json_lacks_become_null():
    from gpbackprop.cli.screen import strict

    assert strict({"a": (math.nan, [math.inf, 1.5]), 2: "x"}) == {"a": [None, [None, 1.5]], "2": "x"}


def test_a_sparkline_runs_from_the_least_to_the_largest_value():
    from gpbackprop.cli.progress import WIDTH, sparkline

    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([1.0, None, 1.0], unicode=False) == "_ _"
    assert len(sparkline([float(i) for i in range(1000)])) == WIDTH
    assert sparkline([float(i) for i in range(1000)]).startswith("▁")
