"""One run: its libvirtd, its daemon, its guests, and its rounds."""

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Final, Self

import grpc
import libvirt
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.system.chaos.callers import Callers, LostCallError, ask
from tests.system.chaos.faults import DaemonFaults, trouble_libvirtd
from tests.system.chaos.model import FINAL, Model, line
from tests.system.chaos.plan import CLIENTS, Deed, deeds, stream
from tests.system.chaos.players import cast
from tests.system.chaos.promises import History, Violation, answered
from tests.system.chaos.record import Record
from tests.system.chaos.report import tell
from tests.system.chaos.rest import Difference, calm, differences, told_by_no_event, truths
from tests.system.chaos.virsh import Virsh
from tests.system.chaos.watching import Watching, read
from tests.system.daemon import Daemon
from tests.system.deadline import NeverHappenedError, until
from tests.system.guests import Roms
from tests.system.history import journal
from tests.system.libvirtd import PrivateLibvirtd

# No survey but the first after each connect: what events do not tell is not smoothed over.
_SETTINGS: Final = """
survey_interval = "1h"
log_level = "debug"
[stop]
press_interval = "0.5s"
force_timeout = "20s"
"""
_LANES: Final = 7
_WATCHERS: Final = 4
# In a burst the lanes leave the machine to the daemon, which is started once a second.
_SLOWER: Final = 3
# libvirtd has just come back, six requests have just been taken up again: patience.
_RESTS_WITHIN_S: Final = 30.0


class ChaosError(AssertionError):
    """A promise was not kept."""


class Run:
    """A context manager: entered, all is up; left, nothing is left.

    Args:
        seed: settles what is done.
        cache: see `PrivateLibvirtd`.
        keep: where the daemon's files go if a promise is not kept; None: nowhere.
    """

    def __init__(self, seed: int, *, cache: Path | None = None, keep: Path | None = None) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self._cache = cache
        self._keep = keep
        self._model = Model()
        self._stack = contextlib.ExitStack()
        self._rounds = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # it prints each error otherwise, and nearly all of them are part of the trial
            libvirt.registerErrorHandler(lambda *_: None, None)
            stack.callback(libvirt.registerErrorHandler, None, None)
            self._libvirtd = stack.enter_context(PrivateLibvirtd(self._cache))
            roms = Roms(self._libvirtd.directory / "roms")
            roms.directory.mkdir(mode=0o755)
            self.players = cast(stream(self.seed, "cast"), roms)
            self._lanes = [
                deeds(stream(self.seed, "lane", lane), range(lane, len(self.players), _LANES))
                for lane in range(_LANES)
            ]
            directory = self._libvirtd.directory
            self._daemon = stack.enter_context(
                Daemon(self._libvirtd.uri, directory, settings=_SETTINGS)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def round(self, seconds: float, *, burst: bool, libvirtd_troubled: bool) -> None:
        """Let chaos reign for a time, then come to rest and check.

        Raises:
            ChaosError: a promise was not kept; it tells which and how.
        """
        self._rounds += 1
        began = time.monotonic()
        record = Record()
        history = None
        try:
            watchers = self._reign(
                record, seconds, burst=burst, libvirtd_troubled=libvirtd_troubled
            )
            violations, history = self._rest(record, watchers)
        except (AssertionError, grpc.RpcError) as error:
            violations = [Violation(f"{type(error).__name__}: {error}")]
        self.counts += record.counts()
        self.counts["rounds"] += 1
        self.counts["transitions"] += len(history.transitions) if history else 0
        self.counts["seconds"] += round(time.monotonic() - began)
        if violations:
            self._fail(violations, history, record)

    def _fail(self, violations: list[Violation], history: History | None, record: Record) -> None:
        if self._keep is not None:
            shutil.copytree(self._daemon.directory, self._keep, ignore=_sockets)
        told = tell(violations, history, record)
        log = "" if history is not None else f"\n{self._daemon.log_tail()}"
        raise ChaosError(f"seed {self.seed}, round {self._rounds}: {told}{log}")

    def _reign(
        self, record: Record, seconds: float, *, burst: bool, libvirtd_troubled: bool
    ) -> list[Watching]:
        over = Event()
        callers = Callers(self._daemon.target, record, over)
        watchers = [
            Watching(
                f"watcher {n}",
                self._daemon.target,
                self.players,
                stream(self.seed, self._rounds, "watcher", n),
                self._model.revision,
                picks=n > 0,
            )
            for n in range(_WATCHERS)
        ]
        faults = DaemonFaults(self._daemon, stream(self.seed, self._rounds, "daemon"))
        with ThreadPoolExecutor(_LANES + _WATCHERS + 2, thread_name_prefix="lane") as pool:
            lanes = [
                pool.submit(self._act, lane, record, callers, over, _SLOWER if burst else 1)
                for lane in range(_LANES)
            ]
            lanes += [pool.submit(watcher.run, record, over) for watcher in watchers]
            reads = stream(self.seed, self._rounds, "reader")
            lanes.append(pool.submit(read, self._daemon.target, reads, record, over))
            if libvirtd_troubled:
                trouble = stream(self.seed, self._rounds, "libvirtd")
                lanes.append(pool.submit(trouble_libvirtd, self._libvirtd, trouble, record, over))
            try:
                (faults.in_a_burst if burst else faults.now_and_then)(record, seconds)
            finally:
                over.set()
        for lane in lanes:
            lane.result()
        callers.join()
        return watchers

    def _act(self, lane: int, record: Record, callers: Callers, over: Event, slower: int) -> None:
        """Do what the plan has for one lane's guests, until the round is over."""
        virsh = Virsh(self._libvirtd)
        name = f"lane {lane}"
        for deed in self._lanes[lane]:
            if over.wait(slower * deed.pause_s):  # the plan's
                break
            self._do(deed, name, virsh, record, callers)
        virsh.close()

    def _do(self, deed: Deed, lane: str, virsh: Virsh, record: Record, callers: Callers) -> None:
        player = self.players[deed.player]
        if deed.verb in CLIENTS:
            callers.make(deed, player, lane)
            return
        with record.act(lane, deed.verb, player.uuid) as act:
            act.outcome = virsh.do(deed, player)

    def _rest(self, record: Record, watchers: list[Watching]) -> tuple[list[Violation], History]:
        until(self._calm, "nobody acts by himself", within_s=_RESTS_WITHIN_S)
        violations = [*self._agree("by events alone", surveyed=False)]
        head = self._daemon.host().head_revision
        self._daemon.restart()
        until(self._surveyed, "the first survey", within_s=_RESTS_WITHIN_S)
        violations += self._agree("after a survey", surveyed=True)
        violations += (
            Violation(f"at rest a survey finds {line(t)}", t.vm.uuid, t.revision)
            for t in journal(self._daemon.stub, after=head)
            if not told_by_no_event(t)
        )
        violations += self._repeat(record)
        host = self._daemon.host()
        for watcher in watchers:
            watcher.catch_up(record, host.head_revision)
        since = self._model.revision
        transitions = journal(self._daemon.stub, after=since)
        history = History(host.journal_id, since, transitions, self._model)
        violations += history.check(record)
        violations += self._left_open()
        return violations, history

    def _calm(self) -> bool:
        """Return whether no guest acts by itself, and no operation may bring one up that does."""
        listed = self._daemon.stub.ListVms(pb.ListVmsRequest(), timeout=10)
        under_way = any(vm.active_operation_id for vm in listed.vms)
        return not under_way and calm(self._libvirtd.connection, self.players)

    def _agree(self, when: str, *, surveyed: bool) -> Iterator[Violation]:
        """Wait until libvirt and the daemon agree."""
        left: list[Difference] = []

        def agreed() -> bool:
            try:
                there = truths(self._libvirtd.connection)
            except libvirt.libvirtError as error:
                left[:] = [Difference("", f"libvirt is not at rest: {error}")]
                return False
            listed = self._daemon.stub.ListVms(pb.ListVmsRequest(), timeout=10)
            left[:] = differences(there, listed.vms, surveyed=surveyed)
            left.extend(
                Difference(vm.uuid, f"{vm.name}: operation {vm.active_operation_id} is open")
                for vm in listed.vms
                if vm.active_operation_id
            )
            return not left

        try:
            until(agreed, f"{when} the journal is libvirt's", within_s=_RESTS_WITHIN_S)
        except NeverHappenedError:
            for difference in left:
                yield Violation(f"{when}: {difference.what}", difference.vm)

    def _surveyed(self) -> bool:
        link = self._daemon.host().link
        return link.libvirt_connected and link.HasField("last_survey_time")

    def _repeat(self, record: Record) -> Iterator[Violation]:
        """Make every request again that was accepted: it must be the same operation, over."""
        for call in record.calls:
            earlier = answered(call)
            if earlier is None:
                continue
            try:
                outcome = ask(self._daemon.target, call.request)
            except LostCallError:
                record.lost_calls += 1
                continue
            call.outcomes.append(outcome)
            self.counts["requests repeated at rest"] += 1
            told = outcome.responses[-1].operation if outcome.responses else None
            wanted = earlier.operation.operation_id
            if told is None or told.operation_id != wanted or told.phase not in FINAL:
                yield Violation(f"{call.verb} {wanted} asked for again: {outcome}", call.vm)

    def _left_open(self) -> Iterator[Violation]:
        for operation_id, course in self._model.courses.items():
            if not course.ended:
                yield Violation(f"{operation_id} is open", course.vm, course.accepted)


def _sockets(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(directory) / name).is_socket()]
