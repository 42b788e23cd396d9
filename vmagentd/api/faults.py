"""Faults of the daemon: its log has them whole, a client gets their number."""

from __future__ import annotations

import logging
import uuid

from vmagentd import messages
from vmagentd.api.status import Fault

log = logging.getLogger(__name__)


def logged(method: str, error: BaseException) -> Fault:
    """Log an error that nobody expected of a call of *method*; return what its client is told."""
    fault_id = str(uuid.uuid4())
    log.error(
        "%s: fault %s",
        method,
        fault_id,
        exc_info=error,
        extra={"VMAGENTD_FAULT_ID": fault_id, "MESSAGE_ID": messages.CALL_FAULT},
    )
    return Fault(fault_id)
