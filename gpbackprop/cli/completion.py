"""gpbackprop completion"""

import click

from gpbackprop.cli import screen

EPILOG = """
\b
bash   gpbackprop completion bash > ~/.local/share/bash-completion/completions/gpbackprop
zsh    gpbackprop completion zsh > "${fpath[1]}/_gpbackprop"
fish   gpbackprop completion fish > ~/.config/fish/completions/gpbackprop.fish
"""


@click.command(short_help="The script that completes commands in a shell.", epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell):
    """Print the script that lets SHELL complete commands, options and files of gpbackprop."""
    from click.shell_completion import get_completion_class

    from gpbackprop.cli import COMPLETE
    from gpbackprop.cli.group import cli

    kind = get_completion_class(shell)
    assert kind is not None
    screen.result(kind(cli, {}, "gpbackprop", COMPLETE).source())
