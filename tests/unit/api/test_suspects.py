"""Whoever may have ended gRPC's loop does not get in for a while, and few others."""

from __future__ import annotations

from vmagentd.api.suspects import Suspects
from vmagentd.errors import ShutOut
from vmagentd.model import LocalPeer

WITH_ROLE = range(100, 200)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0
        self.suspects = Suspects(
            has_role=lambda peer: peer.uid in WITH_ROLE, clock=lambda: self.now
        )

    def suspect(self, *uids: int) -> set[int]:
        return {peer.uid for peer, _ in self.suspects.suspect(map(a_peer, uids))}

    def told(self, uid: int) -> str:
        try:
            self.suspects.check(a_peer(uid))
        except ShutOut as error:
            return str(error)
        return ""

    def out(self, uid: int) -> bool:
        return bool(self.told(uid))

    def out_s(self, uid: int) -> float:
        """Let time go on until that user gets in, and return how long that took."""
        began = self.now
        while self.out(uid):
            self.now += 0.5
        return self.now - began


def a_peer(uid: int) -> LocalPeer:
    return LocalPeer(uid=uid, gids=frozenset(), pid=7, user=None)


def test_each_time_it_is_twice_as_long_up_to_a_minute() -> None:
    time = Time()
    took = []
    for _ in range(8):
        assert time.suspect(1000) == {1000}
        took.append(time.out_s(1000))
    assert took == [1, 2, 4, 8, 16, 32, 60, 60]
    assert not time.out(1001)
    time.now += 61
    time.suspect(1000)
    assert time.out_s(1000) == 1


def test_who_has_a_role_is_suspected_if_nobody_else_is_there() -> None:
    time = Time()
    assert time.suspect(1000, 100, 101) == {1000}
    assert not time.out(100)
    assert time.suspect(100, 101) == {100, 101}
    assert time.out_s(100) == 1


def test_root_gets_in_whatever_happens() -> None:
    time = Time()
    assert time.suspect(0) == set()
    assert time.suspect(0, 100) == {100}
    for uid in range(1000, 1010):
        time.suspect(uid)
    assert not time.out(0)


def test_many_without_a_role_are_one() -> None:
    time = Time()
    time.suspect(1000)
    assert not time.out(5000)
    took = []
    for uid in range(1001, 1009):
        time.suspect(uid)
        assert not time.out(100)
        took.append(time.out_s(5000))
    assert took == [1, 2, 4, 8, 16, 32, 60, 60]


def test_they_are_told_for_how_long() -> None:
    time = Time()
    ((_, why),) = time.suspects.suspect([a_peer(1000)])
    assert "uid:1000 may not connect for 1 s" in str(why)
    time.suspect(1000)
    assert "uid:1000 may not connect for 2 s" in time.told(1000)
    time.suspect(1001)
    assert "whoever has no role may not connect" in time.told(5000)
