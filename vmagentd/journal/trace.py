"""Each committed transition as a line of the log, at DEBUG."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmagentd.model import Transition

log = logging.getLogger(__name__)


def trace(transitions: Sequence[Transition]) -> None:
    """Log *transitions*, if anybody wants to read them."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    for transition in transitions:
        vm = transition.vm
        log.debug(
            "revision %d: %s %s %s (%s), per %s",
            transition.revision,
            vm.name,
            transition.kind,
            vm.state,
            vm.reason,
            transition.source,
            extra={
                "REVISION": transition.revision,
                "VM_UUID": vm.uuid,
                "VM_NAME": vm.name,
                "OPERATION_ID": transition.operation_id,
                "ACTOR": vm.initiator.actor,
            },
        )
