"""Completion scripts for shells, from the parser of the command line."""

import argparse

from rankmon.cli import fish

SHELLS = ("bash", "fish", "zsh", "tcsh")
NEEDS_SHTAB = ("bash", "zsh", "tcsh")


def completions(top: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script for a shell of `SHELLS`.

    Raises:
      ModuleNotFoundError: if the shell needs shtab, and shtab is not installed.
    """
    if shell not in NEEDS_SHTAB:
        return fish.script(top)
    import shtab

    for action in _all_actions(top):
        if action.metavar in ("FILE", "LOGDIR", "RUN"):
            kind = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY
            action.complete = kind  # type: ignore[attr-defined]
    return str(shtab.complete(top, shell=shell))


def _all_actions(top: argparse.ArgumentParser) -> list[argparse.Action]:
    actions = list(top._actions)
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [inner for choice in action.choices.values() for inner in choice._actions]
    return actions
