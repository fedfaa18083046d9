"""Commands that run in the process of a test, which is faster than one of their own and can be patched."""

from click.testing import CliRunner, Result

from gpbackprop.cli.group import cli


def call(*arguments, code: int = 0) -> Result:
    """What a command printed that is to end with `code`. What it raises comes out as it is, without an exit code."""
    line = [str(argument) for argument in arguments]
    done = CliRunner().invoke(cli, line, standalone_mode=False, catch_exceptions=False)
    ended = done.return_value or done.exit_code
    assert ended == code, f"{line} ended with {ended}:\n{done.output}"
    return done
