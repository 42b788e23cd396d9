"""Whose calls go on when the rules change."""

from __future__ import annotations

import pytest

from vmagentd.api import rights
from vmagentd.model import Caller, CallerOrigin, Grant, Role

VIEW_ALL = Grant(role=Role.VIEWER)
VIEW_WEB = Grant(role=Role.VIEWER, vm_globs=("web*",))
VIEW_BOTH = Grant(role=Role.VIEWER, vm_globs=("web*", "db*"))
RUN_ALL = Grant(role=Role.OPERATOR)
RUN_WEB = Grant(role=Role.OPERATOR, vm_globs=("web*",))
RUN_DB = Grant(role=Role.OPERATOR, vm_globs=("db*",))


def caller(*grants: Grant) -> Caller:
    return Caller(actor="user:a", grants=grants, origin=CallerOrigin.LOCAL, peer="uid 1, pid 1")


@pytest.mark.parametrize(
    ("before", "now", "same_view", "same_run"),
    [
        ((VIEW_WEB, RUN_DB), (RUN_DB, VIEW_WEB), True, True),
        ((RUN_WEB, RUN_DB), (RUN_DB, RUN_WEB, VIEW_BOTH), True, True),
        ((RUN_ALL,), (RUN_ALL, RUN_WEB, VIEW_ALL), True, True),
        ((RUN_ALL,), (Grant(role=Role.ADMIN),), True, True),
        ((VIEW_BOTH, RUN_DB), (VIEW_BOTH, RUN_WEB), True, False),
        ((VIEW_ALL, RUN_DB), (RUN_ALL,), True, False),
        ((RUN_DB,), (RUN_DB, VIEW_WEB), False, False),
        ((RUN_WEB,), (RUN_WEB, VIEW_ALL), False, False),
        ((RUN_ALL,), (RUN_WEB,), False, False),
        ((), (VIEW_ALL,), False, False),
    ],
)
def test_what_is_seen_and_done_decides_and_not_which_rules_say_so(
    before: tuple[Grant, ...],
    now: tuple[Grant, ...],
    *,
    same_view: bool,
    same_run: bool,
) -> None:
    for one, other in ((before, now), (now, before)):
        was, is_now = caller(*one), caller(*other)
        assert rights.same(Role.VIEWER, was, is_now) is same_view
        assert rights.same(None, was, is_now) is same_view
        assert rights.same(Role.OPERATOR, was, is_now) is same_run
