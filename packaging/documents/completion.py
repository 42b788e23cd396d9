"""The shells' completions: of commands, options and choices.

Fixed texts: to ask vmagentctl at each Tab would take as long as its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commands import Command

_BASH = """\
_vmagentctl() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command= word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$command${{command:+ }}$word" in
            {all}) command="$command${{command:+ }}$word" ;;
        esac
    done
    case "$command:$previous" in
{choices}
    esac
    case "$command" in
{words}
    esac
}}
complete -F _vmagentctl vmagentctl
"""
_ZSH = """\
#compdef vmagentctl
_vmagentctl() {{
    local command= word
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$command${{command:+ }}$word" in
            {all}) command="$command${{command:+ }}$word" ;;
        esac
    done
    case "$command:${{words[CURRENT-1]}}" in
{choices}
    esac
    case "$command" in
{words}
    esac
}}
_vmagentctl "$@"
"""


def bash(commands: list[Command]) -> str:
    """Return the completion for bash."""
    files = 'compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur")); return'
    return _cases(
        _BASH, commands, 'COMPREPLY=($(compgen -W "{}" -- "$cur")); return', files, "$cur"
    )


def zsh(commands: list[Command]) -> str:
    """Return the completion for zsh."""
    return _cases(_ZSH, commands, "compadd -- {}; return", "_files; return", "${words[CURRENT]}")


def fish(commands: list[Command]) -> str:
    """Return the completion for fish."""
    lines = ["complete -c vmagentctl -f"]
    firsts = sorted({c.words[0] for c in commands if c.words})
    for command in commands:
        *above, last = ("", *command.words)
        seen = above[1:]
        if last:
            before = f"not __fish_seen_subcommand_from {' '.join(firsts)}"
            if seen:
                before = f"__fish_seen_subcommand_from {seen[-1]}"
            lines.append(
                f"complete -c vmagentctl -n '{before}' -a {last} -d '{_quoted(command.summary)}'"
            )
        if command.takes_path:
            lines.append(f"complete -c vmagentctl -n '__fish_seen_subcommand_from {last}' -F")
        for option in command.options:
            parts = ["complete -c vmagentctl"]
            if last:
                parts.append(f"-n '__fish_seen_subcommand_from {last}'")
            parts += [
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                for name in option.names
            ]
            if option.value:
                parts.append(f"-x -a '{' '.join(option.choices)}'" if option.choices else "-x")
                parts[-1] = "-r -F" if option.is_path else parts[-1]
            parts.append(f"-d '{_quoted(option.help)}'")
            lines.append(" ".join(parts))
    return "\n".join(lines) + "\n"


def _cases(script: str, commands: list[Command], offer: str, files: str, typed: str) -> str:
    words, choices = [], []
    for command in commands:
        name = " ".join(command.words)
        below = [c.words[-1] for c in commands if c.words and c.words[:-1] == command.words]
        options = [name for option in command.options for name in option.names]
        offered = offer.format(" ".join([*below, *options, "--help"]))
        if command.takes_path:
            offered = f"[[ {typed} == -* ]] || {{ {files}; }}; {offered}"
        words.append(f"        '{name}') {offered} ;;")
        choices += [
            f"        '{name}:{spelled}') "
            f"{files if option.is_path else offer.format(' '.join(option.choices))} ;;"
            for option in command.options
            if option.value
            for spelled in option.names
        ]
    named = "|".join(f"'{' '.join(c.words)}'" for c in commands if c.words)
    return script.format(all=named, words="\n".join(words), choices="\n".join(choices))


def _quoted(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'")
