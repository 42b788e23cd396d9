"""Everything that can go wrong and be told.

    VmagentdError
    ├── RequestError                what was asked cannot be done as asked
    │   ├── InvalidField
    │   ├── VmNotFound · OperationNotFound
    │   ├── VmPaused · VmSleeping · VmCrashed · VmMigratedAway · VmInState · NoShutdownMethod
    │   ├── OperationInProgress · RequestIdReused
    │   └── RevisionCompacted · JournalReplaced · WatcherTooSlow
    ├── AccessError                 somebody may not do it, or not now
    │   └── CallerUnknown · RoleDenied · AccessChanged · LimitReached · ShutOut
    ├── OperationEnded              an accepted operation did not succeed
    │   └── StartFailed · StartTimedOut · HostLimitReached · GraceExpired · ForceTimedOut
    │       OperationTimedOut · CancelledByStop · OperationCancelled · OperationInterrupted
    ├── HypervisorError             libvirt refused, or could not be asked
    │   └── LibvirtUnreachable · OutcomeUnknown · LibvirtInvalidState · LibvirtBusy
    │       LibvirtDenied · LibvirtUnsupported · HostExhausted · LibvirtRefused
    ├── JournalUnwritable           nothing new can be promised
    ├── ShuttingDown                the daemon ends
    └── StartupError                the daemon cannot run; one line for the operator
        └── ConfigError · SocketInUse · MetricsUnavailable · StateDirInUse ·
            JournalUnusable · TlsUnusable · ListenFailed

An error builds its own sentence from its facts: what is, and what to do next. `facts` are the
same facts by name, as text: they travel to clients and into the journal with a failed operation.
"""

from vmagentd.errors.access import (
    AccessChanged,
    AccessError,
    CallerUnknown,
    LimitReached,
    RoleDenied,
    ShutOut,
)
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
    HostLimitReached,
    OperationCancelled,
    OperationEnded,
    OperationInterrupted,
    OperationTimedOut,
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
    ConfigProblem,
    JournalUnusable,
    ListenFailed,
    MetricsUnavailable,
    SocketInUse,
    StartupError,
    StateDirInUse,
    TlsUnusable,
)

__all__ = [
    "AccessChanged",
    "AccessError",
    "CallerUnknown",
    "CancelledByStop",
    "ConfigError",
    "ConfigProblem",
    "ForceTimedOut",
    "GraceExpired",
    "HostExhausted",
    "HostLimitReached",
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
    "LimitReached",
    "ListenFailed",
    "MetricsUnavailable",
    "NoShutdownMethod",
    "OperationCancelled",
    "OperationEnded",
    "OperationInProgress",
    "OperationInterrupted",
    "OperationNotFound",
    "OperationTimedOut",
    "OutcomeUnknown",
    "RequestError",
    "RequestIdReused",
    "RevisionCompacted",
    "RoleDenied",
    "ShutOut",
    "ShuttingDown",
    "SocketInUse",
    "StartFailed",
    "StartTimedOut",
    "StartupError",
    "StateDirInUse",
    "TlsUnusable",
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
