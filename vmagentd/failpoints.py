"""Places at which the daemon can be told to die, so that tests see what the next one makes of it.

The environment variable VMAGENTD_FAILPOINT names one when the process starts: `before STARTING`,
`after STARTING` (the commit of that phase), `before start`, `after start` (the call of libvirt).
It is not set in service, and nothing else can turn one on.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_NAMED: Final = os.environ.get("VMAGENTD_FAILPOINT")


def failpoint(when: str, what: str) -> None:
    """Die of SIGKILL here and now, if this place is the named one."""
    if _NAMED is not None and f"{when} {what}" == _NAMED:
        os.kill(os.getpid(), signal.SIGKILL)  # does not return
