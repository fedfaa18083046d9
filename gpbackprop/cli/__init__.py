"""Floor 5: the command line.

Results go to stdout, progress and log to stderr. Exit codes: 0 ok, 1 internal error, 2 usage or config, 3 data,
4 checkpoint, 5 device, 6 numerical failure, 7 out of memory, 75 preempted with a checkpoint saved, 130 interrupted;
141 when the reader of the output went away (`| head`), as the shell says of any program.
"""

import os
import signal
import sys
from contextlib import suppress

INTERNAL, USAGE, MEMORY, PREEMPTED, INTERRUPTED, BROKEN_PIPE = 1, 2, 7, 75, 130, 141
COMPLETE = "_GPBACKPROP_COMPLETE"
"""The variable by which the script of `gpbackprop completion` asks for words."""


def main() -> None:
    """Run the command of `sys.argv` and exit with its code. Nothing heavy is imported before it is needed."""
    names = ("SIGINT", "SIGTERM", "SIGUSR1") if sys.argv[1:2] in (["train"], ["resume"]) else ("SIGINT",)
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    for number in signals:
        signal.signal(number, _leave)
    _open_streams()
    code = _run()
    try:
        sys.stdout.flush()
    except OSError:
        code = code or BROKEN_PIPE
    _point_to_nowhere()
    for number in signals:  # the work is done: a late Ctrl-C changes nothing
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _open_streams() -> None:
    """Give the program the streams that it was begun without, as by `2>&-`.

    A file that is opened later would have their numbers, and what a library says to stderr would be written into it.
    """
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _leave(number, frame) -> None:
    """A signal while nothing is worth saving, above all while packages are imported, some of which swallow exceptions.

    A batch system that ends the program this early is told the same as later: nothing is lost, start again.
    """
    _say_interrupted()
    os._exit(INTERRUPTED if number == signal.SIGINT else PREEMPTED)


def _say_interrupted() -> None:
    with suppress(OSError):  # from a full disk, or a terminal that is gone
        os.write(2, b"\ninterrupted\n")


def _run() -> int:
    """The exit code of the command; what went wrong is said on stderr."""
    import click

    from gpbackprop.cli.group import cli
    from gpbackprop.errors import GPError

    try:
        if instruction := os.environ.get(COMPLETE):  # a shell asks what may come next
            from click.shell_completion import shell_complete

            return shell_complete(cli, {}, "gpbackprop", COMPLETE, instruction)
        with cli.make_context("gpbackprop", sys.argv[1:]) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _say_usage(error)
    except KeyboardInterrupt:
        _say_interrupted()
        return INTERRUPTED
    except GPError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        _point_to_nowhere()
        return BROKEN_PIPE
    except MemoryError as error:
        if (ours := _of_cuda(error)) is not None:
            return _say(str(ours), MEMORY, trace=True)
        advice = "try a smaller train.batch_size, model or population, or a machine with more memory"
        return _say(f"out of memory: {str(error) or 'no further detail'}; {advice}", MEMORY, trace=True)
    except OSError as error:
        if error.filename is not None:
            return _say(f"{error.filename}: {error.strerror or error}", USAGE, trace=True)
        return _say_refused(error) if _was_printing(error) else _say_internal(error)
    except Exception as error:
        if (ours := _of_cuda(error)) is not None:
            return _say(str(ours), getattr(ours, "exit_code", MEMORY), trace=True)
        return _say_internal(error)


def _of_cuda(error: Exception) -> Exception | None:
    """An error of CUDA in words of ours, if CUDA was asked for at all."""
    faults = sys.modules.get("gpbackprop.backend.faults")
    return faults.told(error, "cuda") if faults else None


def _say(message: str, code: int, *, trace: bool = False) -> int:
    from gpbackprop.cli import screen

    if trace and screen.verbosity > 0:
        import traceback

        screen.note(traceback.format_exc().rstrip())
    screen.error(message)
    return code


def _was_printing(error: OSError) -> bool:
    """Whether click was printing: the help, the version and the words for a shell, which do not pass by `screen`.

    That is stdout: what goes to stderr is let go where stderr takes no more.
    """
    import traceback

    import click

    return any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _say_refused(error: OSError) -> int:
    from gpbackprop.cli import screen

    ours = screen.refused(error)
    return _say(str(ours), ours.exit_code, trace=True)


def _say_internal(error: Exception) -> int:
    known = getattr(error, "logged_in", None)
    where = f"the traceback is in {known}" if known else "-v shows the traceback"
    text = f"internal error, not of your making: {type(error).__name__}: {error} ({where})"
    return _say(text, INTERNAL, trace=True)


def _say_usage(error) -> int:
    """A mistake in the command line, and where to read on."""
    from gpbackprop.cli import screen

    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        screen.note(error.format_message())
        return error.exit_code
    screen.error(error.format_message())
    if context is not None:
        screen.note(f"`{context.command_path} -h` tells what it takes")
    return error.exit_code


def _point_to_nowhere() -> None:
    """Python flushes the streams once more when it ends, which would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
