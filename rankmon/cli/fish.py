"""The completion script for fish, which shtab does not write, from an argparse parser."""

import argparse
from collections.abc import Iterator

_NO_COMMAND = "__fish_use_subcommand"
_FOLDERS = "'(__fish_complete_directories)'"
_BARE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"


def script(top: argparse.ArgumentParser) -> str:
    """Return a script for ~/.config/fish/completions that completes the commands of a parser."""
    return "\n".join(
        [f"# Completions of {top.prog}, written by `{top.prog} completions fish`.", *_lines(top)]
    ) + "\n"  # fmt: skip


def _lines(top: argparse.ArgumentParser) -> Iterator[str]:
    """Yield one `complete` for each command, option and folder."""
    start = f"complete -c {top.prog}"
    yield f"{start} -f"  # no files, but where the lines below ask for them
    for action in top._actions:
        if not isinstance(action, argparse._SubParsersAction):
            yield f"{start} -n {_NO_COMMAND} {_option(action)}"
            continue
        says = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, command in action.choices.items():
            yield f"{start} -n {_NO_COMMAND} -a {name} -d {_quoted(says.get(name, ''))}"
            here = f"{start} -n '__fish_seen_subcommand_from {name}'"
            for inner in command._actions:
                words = _option(inner) if inner.option_strings else _positional(inner)
                if words:
                    yield f"{here} {words}"


def _option(action: argparse.Action) -> str:
    """Return the arguments of `complete` for an option."""
    words = []
    for option in action.option_strings:
        words.append(f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}")
    if action.metavar == "FILE":
        words.append("-r -F")
    elif action.choices is not None:
        words.append(f"-x -a {_quoted(' '.join(map(str, action.choices)))}")
    elif action.nargs is None:  # not a flag, nor an option whose value can be left out
        words.append("-x")
    if action.help:
        words.append(f"-d {_quoted(action.help % {**vars(action)})}")
    return " ".join(words)


def _positional(action: argparse.Action) -> str:
    """Return the arguments of `complete` for an argument without a name; "" for free text."""
    if action.choices is not None:
        return f"-a {_quoted(' '.join(map(str, action.choices)))}"
    return f"-a {_FOLDERS}" if action.metavar in ("LOGDIR", "RUN") else ""


def _quoted(text: str) -> str:
    """Return the text as one word of fish; only backslashes and ' are special in quotes."""
    if text and set(text) <= set(_BARE):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
