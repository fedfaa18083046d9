"""The commands, each in a file of its own that is imported when the command is called."""

import importlib

import click

from gpbackprop import __version__

# In the order of the help: what a beginner types first stands first.
COMMANDS = {
    "init": "Write a commented config to start from.",
    "train": "Train a network from a config file.",
    "resume": "Go on with a run that was stopped.",
    "evaluate": "The loss and metrics of a model on a split, or on a file.",
    "predict": "Predictions for a file of raw rows.",
    "inspect": "What is in a model: layers, parameters, progress.",
    "verify": "Whether a checkpoint, or all of a run, is whole.",
    "gradcheck": "Every gradient of a network, held to differences of its loss.",
    "trace": "The numbers of forward, backward and update, step by step.",
    "data": "The data sets that have a name.",
    "devices": "What can be used, and the reason where something cannot.",
    "completion": "The script that completes commands in a shell.",
}


class Suggesting(click.Group):
    """A group that knows what was meant by a misspelt command."""

    def resolve_command(self, ctx, args):
        known = self.list_commands(ctx)
        if args[0] not in known and not ctx.resilient_parsing:  # a shell that completes wants no error
            raise click.UsageError(f"no command {args[0]!r}{hint(args[0], known)}", ctx)
        return super().resolve_command(ctx, args)


class Commands(Suggesting):
    """The commands by name; a command's file is imported when it is called."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        return importlib.import_module(f"gpbackprop.cli.{name}").command if name in COMMANDS else None

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def hint(word: str, words: list[str]) -> str:
    """`spec.suggest`, without what it imports, and with all words where none is near."""
    import difflib

    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else f"; there are: {', '.join(words)}"


EPILOG = """
\b
A first run:
  gpbackprop init digits
  gpbackprop train digits.toml

MODEL is a run directory or a checkpoint file. Results go to stdout, progress and log to stderr.

\b
Exit codes: 0 ok, 1 internal error, 2 usage or config, 3 data, 4 checkpoint, 5 device, 6 not a number,
7 out of memory, 75 told to stop (resume goes on), 130 interrupted.
"""


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="[-h] [--version]",
    subcommand_metavar="COMMAND ...",
)
@click.version_option(__version__, message="gpbackprop %(version)s")
def cli():
    """Train neural networks by backpropagation, from one TOML file and one command."""
