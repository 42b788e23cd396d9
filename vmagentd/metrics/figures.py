"""The figures: what is counted and measured, under which names.

What is measured elsewhere comes in by plain methods, cheap and from any thread; what can be looked
at is looked at when somebody reads. Labels are choices of ours or names of our errors, never of
VMs or callers: their number is bounded.
"""

from __future__ import annotations

from collections import Counter as Counts
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING, Final, Never

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import (
    CONTENT_TYPE_PLAIN_0_0_4,
    choose_encoder,
    generate_latest,
)

from vmagentd.metrics.observers import Observers
from vmagentd.model import Source, VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmagentd.journal.store import Journal
    from vmagentd.model import Operation, Transition
    from vmagentd.watch import Watch

# What an event's way takes is milliseconds; a disk that is slow, seconds.
_FAST: Final = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_CALLS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_OPERATIONS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FACTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Figures:
    """All figures of one daemon."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # promtool finds fault with them
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"vmagentd_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vmagentd_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _FAST
        ) -> Histogram:
            return Histogram(f"vmagentd_{name}", text, labels, registry=registry, buckets=buckets)

        gauge("build_info", "1; the version is a label.", "version").labels(
            version("vmagentd")
        ).set(1)
        self._vms = gauge("vms", "VMs that the journal knows, by state.", "state")
        self._transitions = counter(
            "transitions_total", "Committed transitions.", "kind", "reason"
        )
        self._event_commit = histogram(
            "event_commit_seconds",
            "From libvirt's callback until the change is durable and shown.",
        )
        self._event_delivery = histogram(
            "event_delivery_seconds",
            "From libvirt's callback until gRPC has taken the change for a watcher who was there.",
        )
        self._inbox = gauge("journal_inbox_facts", "Facts that wait for the journal's writer.")
        self._commit = histogram(
            "journal_commit_seconds", "Time that one commit took, with fsync."
        )
        self._commit_facts = histogram(
            "journal_commit_facts", "Facts in one commit.", buckets=_FACTS
        )
        self._revision = gauge("journal_revision", "Revision of the newest transition.")
        self._oldest = gauge("journal_oldest_revision", "Revision from which on history is whole.")
        self._writable = gauge("journal_writable", "1 while the journal can be written, else 0.")
        self._connections = gauge("connections", "Connections of clients of this host.")
        self._watchers = gauge("watchers", "Clients that watch.")
        self._lag = gauge(
            "watcher_lag_revisions", "How far the slowest watcher is behind the journal."
        )
        self._running = gauge("operations_running", "Operations under way.")
        self._operations = counter(
            "operations_total",
            "Operations that ended; the outcome is the error's name if there was one.",
            "verb",
            "outcome",
        )
        self._operation_time = histogram(
            "operation_seconds",
            "From acceptance to the committed end of an operation.",
            "verb",
            buckets=_OPERATIONS,
        )
        self._connected = gauge("libvirt_connected", "1 while libvirt can be asked, else 0.")
        self._connects = counter("libvirt_connects_total", "Connections to libvirt that came up.")
        self._blind = counter(
            "libvirt_blind_seconds_total", "Time in which libvirt could not be asked."
        )
        self._blind_from: float | None = None
        self._survey = gauge(
            "last_survey_timestamp_seconds", "When the last complete survey began; 0: never."
        )
        self._calls = counter(
            "libvirt_calls_total",
            "Calls to libvirt; the result is ok or an error's name.",
            "call",
            "result",
        )
        self._call_time = histogram(
            "libvirt_call_seconds",
            "Time until a call was answered or given up; waiting for a thread counts.",
            "call",
            buckets=_CALLS,
        )
        self._refusals = counter(
            "refusals_total",
            "Connections not let in, calls of who may not, and operations that were not accepted.",
            "reason",
        )

        self.observers = Observers(
            commit=self._take_commit,
            call=self._take_call,
            connect=self._connects.inc,
            delivered=self._take_delivered,
            refusal=lambda error: self._refusals.labels(type(error).__name__).inc(),
            operation=self._take_operation,
        )

    def _take_commit(self, seconds: float, facts: int) -> None:
        self._commit.observe(seconds)
        self._commit_facts.observe(facts)

    def _take_call(self, name: str, result: str, seconds: float) -> None:
        self._calls.labels(name, result).inc()
        self._call_time.labels(name).observe(seconds)

    def _take_delivered(self, transitions: Sequence[Transition]) -> None:
        # Only the last that an event brought: each of a thousand watchers takes them.
        for transition in reversed(transitions):
            if transition.source is Source.EVENT:
                self._event_delivery.observe(_age_s(transition))
                return

    def _take_operation(self, operation: Operation) -> None:
        outcome: str = operation.phase
        if operation.failure is not None:
            outcome = operation.failure.error
        elif operation.outcome is not None:
            outcome = operation.outcome
        self._operations.labels(operation.verb, outcome).inc()
        if operation.end_time is not None:
            took = operation.end_time - operation.accept_time
            self._operation_time.labels(operation.verb).observe(max(took.total_seconds(), 0.0))

    async def follow(self, journal: Journal) -> Never:
        """Count what is committed, and the time without libvirt; run this as one task."""
        after = journal.head
        while True:
            changed = journal.changed
            self._tick(connected=journal.link.connected)
            page = await journal.page(after)
            for transition in page:
                after = transition.revision
                self._transitions.labels(transition.kind, transition.vm.reason).inc()
                if transition.source is Source.EVENT:
                    self._event_commit.observe(_age_s(transition))
            if not page:
                await changed.wait()

    def _tick(self, *, connected: bool) -> None:
        """Add the time without libvirt since the last tick."""
        now = monotonic()
        if self._blind_from is not None:
            self._blind.inc(now - self._blind_from)
        self._blind_from = None if connected else now

    def look(self, journal: Journal, watch: Watch, *, connections: int) -> None:
        """Take what can be looked at. On the loop; quick."""
        counts = Counts(vm.state for vm in journal.vms.values())
        for state in VmState:
            self._vms.labels(state).set(counts[state])
        self._running.set(sum(vm.active_operation_id is not None for vm in journal.vms.values()))
        self._connections.set(connections)
        self._inbox.set(journal.inbox_depth)
        self._revision.set(journal.head)
        self._oldest.set(journal.oldest)
        self._writable.set(journal.writable)
        self._connected.set(journal.link.connected)
        self._tick(connected=journal.link.connected)
        surveyed = journal.link.last_survey_time
        self._survey.set(surveyed.timestamp() if surveyed else 0)
        self._watchers.set(watch.watchers)
        slowest = watch.slowest
        self._lag.set(0 if slowest is None else journal.head - slowest)

    def encoding(self, accepted: str) -> tuple[str, Callable[[], bytes]]:
        """Return a content type that *accepted* allows, and what writes all figures in it.

        That may be called in any thread.
        """
        try:
            encoder, content_type = choose_encoder(accepted)
        except Exception:  # noqa: BLE001 - it means to understand all, and a reader may send anything
            encoder, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        return content_type, partial(encoder, self._registry)


def _age_s(transition: Transition) -> float:
    """Return how long ago it happened, by the host's clock, which may have been set."""
    return max((datetime.now(UTC) - transition.time).total_seconds(), 0.0)
