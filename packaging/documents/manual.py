"""The man pages."""

from __future__ import annotations

import re
import textwrap
from importlib.metadata import version
from typing import TYPE_CHECKING

from vmagentd.__main__ import _parser

if TYPE_CHECKING:
    from argparse import Action

    from commands import Command, Option
    from settings import Table

_FILES = """
/etc/vmagentd/vmagentd.toml
    The settings, see vmagentd.toml(5).
/run/vmagentd/vmagentd.sock
    Where clients connect. systemd holds it (vmagentd.socket): while the daemon restarts, clients
    wait. systemctl edit vmagentd.socket moves it; the daemon's own settings do not.
/var/lib/vmagentd
    The journal: what happened to each VM, who did it, and the operations. Never copy it while the
    daemon runs; never edit it.
/usr/share/vmagentd/remote.conf
    The drop-in for vmagentd.service that lets it listen on TCP.
"""
_ACCESS = """
root and the members of vmagentd-admin may do everything, members of vmagentd-operator may also
start and stop VMs, members of vmagentd-viewer may look. To let somebody in:

    adduser SOMEBODY vmagentd-operator

It holds from their next login on. Others are refused. [access] in vmagentd.toml(5) has more.
"""
_DAEMON = """
vmagentd follows libvirt, commits every change of a VM's state to a journal before anybody sees it,
and lets services and administrators start, stop and watch VMs over gRPC. While libvirt cannot be
asked it is blind, says so, and goes on with what it knows.

It runs as the user vmagentd, without privileges; a polkit rule lets it use libvirt. The package
starts it; systemctl status vmagentd shows VMs, watchers and what is wrong, if anything is. When it
ends, VMs are left alone: the next one goes on with an open stop, pause or resume, and tells what
became of a start or reboot, which it does not repeat.

Upgrading restarts it, migrates the journal and loses nothing: clients wait at the socket, watchers
resume. A large journal needs room for that, beside it and in /var/tmp: up to 50 MB each for every
million transitions. Removing the package keeps the journal, purging it deletes the journal.
"""
_TARGETS = """
~/.config/vmagentctl/config.toml
    Names for --target, each with what else is needed to get there. Paths are relative to the file.
    | [targets.host1]
    | target = "host1.example.com:7443"
    | cert = "me.pem"
    | key = "me.key"
    | ca = "ca.pem"
/etc/vmagentd/vmagentctl.toml
    The same for all users of the host, for names that are not in the former.
"""
_ENVIRONMENT = """
VMAGENTD_TARGET, VMAGENTD_CERT, VMAGENTD_KEY, VMAGENTD_CA, VMAGENTD_SERVER_NAME
    Stand for the options of that name where these are not given.
"""
_CLIENT_EXITS = """
0
    Done. Of several results the highest number is the exit status.
1
    It failed: the daemon refused it, or the operation did not succeed.
2
    Wrong usage.
3
    No such VM, or no such operation.
4
    vmagentd cannot be reached, or went away and was not back in time. What it had accepted is not
    undone by that: vmagentctl operations tells how it goes.
130
    Interrupted; likewise.
141
    Nobody reads what it prints.
"""
_SIGNALS = """
SIGTERM, SIGINT
    End, within drain_timeout and a few seconds.
SIGHUP
    Read the settings again (systemctl reload vmagentd).
"""
_DAEMON_EXITS = """
0
    Ended by a signal.
1
    Cannot run, or had a fault; the log says which.
2
    Wrong arguments.
78
    Wrong settings.
"""


def vmagentd() -> str:
    """Return the page of the daemon."""
    parser = _parser()
    options = "\n".join(
        f"{' '.join([', '.join(a.option_strings), _value(a)]).strip()}\n"
        f"    {(a.help or '').replace('%%', '%')}"
        for a in parser._actions  # noqa: SLF001 - argparse gives them away in no other way
    )
    return _page(
        "vmagentd",
        8,
        "journal and control of a KVM host's virtual machines",
        {
            "SYNOPSIS": "vmagentd [OPTION]...",
            "DESCRIPTION": _DAEMON,
            "OPTIONS": options,
            "ACCESS": _ACCESS,
            "SIGNALS": _SIGNALS,
            "FILES": _FILES,
            "EXIT STATUS": _DAEMON_EXITS,
            "SEE ALSO": "vmagentctl(1), vmagentd.toml(5), libvirtd(8), journalctl(1)",
        },
    )


def vmagentctl(commands: list[Command]) -> str:
    """Return the page of the client."""
    whole, *rest = commands
    about = f"{whole.help}\n\nOf any command, --help says more."
    told = [
        f"{' '.join((*c.words, *c.arguments))}\n"
        f"{textwrap.indent(c.help, '    ')}\n\n{_options(c.options, '    ')}"
        for c in rest
    ]
    return _page(
        "vmagentctl",
        1,
        "look at the VMs of a host, follow them, start and stop them",
        {
            "SYNOPSIS": "vmagentctl [OPTION]... COMMAND [ARGUMENT]...",
            "DESCRIPTION": about,
            "OPTIONS": _options(whole.options),
            "COMMANDS": "\n".join(told),
            "ACCESS": _ACCESS,
            "ENVIRONMENT": _ENVIRONMENT,
            "FILES": _TARGETS,
            "EXIT STATUS": _CLIENT_EXITS,
            "SEE ALSO": "vmagentd(8), virsh(1)",
        },
    )


def settings_page(tables: list[Table]) -> str:
    """Return the page of the settings."""
    sections = {
        "DESCRIPTION": "/etc/vmagentd/vmagentd.toml is TOML. Every key has a default. "
        'Durations are written like "500ms", "90s", "1m30s" or "7d". '
        "vmagentd --check-config names each wrong key with its line."
    }
    for table in tables:
        lines = [table.about] if table.name else []
        for setting in table.settings:
            default = f"Default: {setting.default}" if setting.default else "No default."
            lines += [setting.key, *(f"    {text}" for text in (setting.comment, default) if text)]
        sections[table.header if table.name else "KEYS"] = "\n".join(lines)
    sections["SEE ALSO"] = "vmagentd(8)"
    return _page("vmagentd.toml", 5, "settings of vmagentd", sections)


def _value(option: Action) -> str:
    return "" if option.nargs == 0 else str(option.metavar or "|".join(option.choices or ()))


def _options(options: tuple[Option, ...], indent: str = "") -> str:
    return "\n".join(
        f"{indent}{', '.join(o.names)}{f' {o.value}' if o.value else ''}\n{indent}    {o.help}"
        for o in options
    )


def _page(name: str, section: int, about: str, sections: dict[str, str]) -> str:
    """Return a page; in its sections an indented line belongs to the one above that is not.

    One that begins with a bar is shown as it is.
    """
    parts = [
        f'.TH {_roff(name.upper())} {section} "" "vmagentd {version("vmagentd")}"',
        f".SH NAME\n{_roff(name)} \\- {_roff(about)}",
    ]
    for title, text in sections.items():
        parts += [f'.SH "{_roff(title)}"', *_paragraphs(textwrap.dedent(text).strip())]
    return "\n".join(parts) + "\n"


def _paragraphs(text: str) -> list[str]:
    lines, depth = [], 0
    all_lines = text.splitlines()
    indents = [(len(line) - len(line.lstrip())) // 4 if line.strip() else -1 for line in all_lines]
    indents += [-1, -1]  # to look ahead at the end
    for at, line in enumerate(all_lines):
        indent, below = indents[at], indents[at + 1]
        heads = below > indent >= 0
        if indent < 0:
            goes_on = below > depth and not indents[at + 2] > below
            lines.append(".sp" if goes_on or depth else ".PP")
            continue
        if line.lstrip().startswith("| "):
            lines += [".br", _roff(line.strip()[2:])]
            continue
        while heads and depth > indent:
            lines.append(".RE")
            depth -= 1
        while heads and depth < indent:
            lines.append(".RS")
            depth += 1
        lines += [".TP", f"\\fB{_roff(line.strip())}\\fR"] if heads else [_roff(line.strip())]
    return [*lines, *[".RE"] * depth]


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text)
