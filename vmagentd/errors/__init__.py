"""Everything that can go wrong and be told.

    VmagentdError
    ├── RequestError                what was asked cannot be done as asked
    │   ├── InvalidField
    │   ├── VmNotFound · OperationNotFound
    │   ├── VmPaused · VmSleeping · VmCrashed · VmMigratedAway · VmInState · NoShutdownMethod
    │   ├── OperationInProgress · RequestIdReused
    │   └── RevisionCompacted · JournalReplaced · WatcherTooSlow
    ├── OperationEnded              an accepted operation did not succeed
    │   └── StartFailed · StartTimedOut · GraceExpired · ForceTimedOut
    │       CancelledByStop · OperationCancelled · OperationInterrupted
    ├── HypervisorError             libvirt refused, or could not be asked
    │   └── LibvirtUnreachable · OutcomeUnknown · LibvirtInvalidState · LibvirtBusy
    │       LibvirtDenied · LibvirtUnsupported · HostExhausted · LibvirtRefused
    ├── JournalUnwritable           nothing new can be promised
    ├── ShuttingDown                the daemon ends
    └── StartupError                the daemon cannot run; one line for the operator
        └── ConfigError · SocketInUse · StateDirInUse · JournalUnusable

An error builds its own sentence from its facts: what is, and what to do next. `facts` are the
same facts by name, as text: they travel to clients and into the journal with a failed operation.
"""

from vmagentd.errors.base import JournalUnwritable, ShuttingDown, VmagentdError, utc
from vmagentd.errors.hypervisor import (
    HostExhausted,
    HypervisorError,
    LibvirtBusy,
    LibvirtDenied,
    LibvirtInvalidState,
    LibvirtRefused,
    LibvirtUnreachable,
    LibvirtUnsupported,
    OutcomeUnknown,
)
from vmagentd.errors.operation import (
    CancelledByStop,
    ForceTimedOut,
    GraceExpired,
    OperationCancelled,
    OperationEnded,
    OperationInterrupted,
    StartFailed,
    StartTimedOut,
)
from vmagentd.errors.request import (
    InvalidField,
    JournalReplaced,
    NoShutdownMethod,
    OperationInProgress,
    OperationNotFound,
    RequestError,
    RequestIdReused,
    RevisionCompacted,
    VmCrashed,
    VmInState,
    VmMigratedAway,
    VmNotFound,
    VmPaused,
    VmSleeping,
    WatcherTooSlow,
)
from vmagentd.errors.startup import (
    ConfigError,
    JournalUnusable,
    SocketInUse,
    StartupError,
    StateDirInUse,
)

__all__ = [
    "CancelledByStop",
    "ConfigError",
    "ForceTimedOut",
    "GraceExpired",
    "HostExhausted",
    "HypervisorError",
    "InvalidField",
    "JournalReplaced",
    "JournalUnusable",
    "JournalUnwritable",
    "LibvirtBusy",
    "LibvirtDenied",
    "LibvirtInvalidState",
    "LibvirtRefused",
    "LibvirtUnreachable",
    "LibvirtUnsupported",
    "NoShutdownMethod",
    "OperationCancelled",
    "OperationEnded",
    "OperationInProgress",
    "OperationInterrupted",
    "OperationNotFound",
    "OutcomeUnknown",
    "RequestError",
    "RequestIdReused",
    "RevisionCompacted",
    "ShuttingDown",
    "SocketInUse",
    "StartFailed",
    "StartTimedOut",
    "StartupError",
    "StateDirInUse",
    "VmCrashed",
    "VmInState",
    "VmMigratedAway",
    "VmNotFound",
    "VmPaused",
    "VmSleeping",
    "VmagentdError",
    "WatcherTooSlow",
    "utc",
]
