"""The `vmagentd` command: arguments → settings → log → run.

Exit codes: 0 ended by a signal or nothing to do, 1 cannot run or had a fault, 2 wrong arguments,
78 wrong settings (EX_CONFIG of sysexits.h: a restart would not help).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vmagentd import config, logs, messages
from vmagentd.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_EX_CONFIG = 78
# three for each connection of a local client, and some
_DESCRIPTORS = 16384


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = vars(_parser().parse_args(arguments))
    file, check = options.pop("config"), options.pop("check_config")
    try:
        settings = config.load(file, options)
    except ConfigError as error:
        for line in error.lines:
            print(f"vmagentd: {line}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return _EX_CONFIG
    if check:
        return _check(settings, file)
    logs.set_up(settings.log_level)
    return _run(settings, partial(config.load, file, options))


def _check(settings: config.Config, file: Path | None) -> int:
    """Look into the files that good settings name, and say what was found."""
    path, network = file or config.DEFAULT_FILE, settings.remote.network
    if network is not None:
        from vmagentd.api import tls  # noqa: PLC0415 - imports gRPC

        try:
            tls.Tls(network.tls, strict=True)
        except StartupError as error:
            print(f"vmagentd: {path}: {error}", file=sys.stderr)  # noqa: T201 - there is no log
            return _EX_CONFIG
    found = f"{path}: no problem found" if path.exists() else f"no {path}: the defaults hold"
    print(found)  # noqa: T201 - what was asked for
    return 0


def _run(settings: config.Config, load: Callable[[], config.Config]) -> int:
    # Read by gRPC as it is imported. We never fork; and what its core calls an error anybody can
    # cause who reaches the port, without a certificate and as often as he likes.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from vmagentd import daemon  # noqa: PLC0415 - imports gRPC

    # Events are taken in a thread of libvirt's, which needs the interpreter a few times for each.
    # While the loop is busy it gets it at this interval; with the default 5 ms it fell behind at
    # 200 events a second (measured).
    sys.setswitchinterval(0.0005)
    _raise_descriptor_limit()
    code = 0
    try:
        asyncio.run(daemon.run(settings, load))
    except* StartupError as refusals:
        code = 1
        for refusal in _leaves(refusals):
            log.error("%s", refusal)  # noqa: TRY400 - the sentence says it all
    except* Exception as faults:
        code = 1
        log.critical("ended by a fault", exc_info=faults, extra={"MESSAGE_ID": messages.FAULT})
    return code


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as we may: the usual 1024 are there for users of select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the errors in *group*, however deep."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmagentd",
        description="Journals every state change of this host's VMs, and starts, stops and "
        "watches them for clients over gRPC.",
        argument_default=argparse.SUPPRESS,
    )
    defaults = config.Config()
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=None,
        help=f"settings (default: {config.DEFAULT_FILE}, if it is there)",
    )
    parser.add_argument(
        "--libvirt-uri",
        metavar="URI",
        help=f"the libvirt to connect to (default: {defaults.libvirt_uri})",
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help=f"Unix socket to serve clients on (default: {defaults.socket})",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help=f"directory of the journal (default: {defaults.state_dir})",
    )
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        help=f"least severity that is logged (default: {defaults.log_level})",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        default=False,
        help="check the settings and the files for TLS, say what is wrong with them, and end",
    )
    parser.add_argument("--version", action="version", version=f"vmagentd {version('vmagentd')}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
