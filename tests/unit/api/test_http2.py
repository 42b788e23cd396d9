"""Whatever the pieces in which it comes, HTTP/2 is followed from frame to frame."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.component.api import wire
from vmagentd.api.http2 import CALL, FRAME, Follower

CONTINUATION = 9

KINDS = st.sampled_from([wire.DATA, wire.HEADERS, wire.SETTINGS, CONTINUATION, 255])
# what is in a frame may look like frames
PAYLOADS = st.one_of(st.binary(max_size=40), st.just(wire.call(b"/a/B") * 2), st.just(b"x" * 300))
FRAMES = st.lists(st.builds(lambda kind, of: (kind, wire.frame(kind, 0, 1, of)), KINDS, PAYLOADS))


def price(kind: int) -> int:
    return CALL if kind == wire.HEADERS else FRAME


def in_pieces(follower: Follower, said: bytes, sizes: list[int]) -> int:
    """Let all through in pieces of these sizes, over and over; return what it costs."""
    place, total = 0, 0
    while place < len(said):
        for size in sizes:
            piece = memoryview(said)[place : place + size]
            passed, cost = follower.within(piece, 1 << 30)
            assert passed == len(piece)
            place, total = place + passed, total + cost
    return total


@given(FRAMES, st.lists(st.integers(1, 50), min_size=1))
def test_however_it_is_split_each_frame_counts_once(
    frames: list[tuple[int, bytes]], sizes: list[int]
) -> None:
    follower = Follower()
    said = wire.PREFACE + b"".join(frame for _, frame in frames)
    assert in_pieces(follower, said, sizes) == sum(price(kind) for kind, _ in frames)
    assert follower.calls == sum(kind == wire.HEADERS for kind, _ in frames)


def test_it_may_be_split_anywhere() -> None:
    said = wire.PREFACE + wire.settings() + wire.call(b"/a/B", end=True) + wire.settings((4, 1))
    for at in range(len(said)):
        for then in range(at, len(said)):
            follower = Follower()
            for piece in (said[:at], said[at:then], said[then:]):
                assert follower.within(memoryview(piece), 1 << 30)[0] == len(piece)
            assert follower.calls == 1


@given(FRAMES, st.lists(st.integers(1, 50), min_size=1), st.integers(CALL, 3 * CALL))
def test_what_is_beyond_the_budget_comes_again(
    frames: list[tuple[int, bytes]], sizes: list[int], budget: int
) -> None:
    """And nothing of a frame that begins beyond it goes on, but for what came before."""
    follower = Follower()
    said = memoryview(wire.PREFACE + b"".join(frame for _, frame in frames))
    place, total, rounds = 0, 0, 0
    while place < len(said):
        piece = said[place : place + sizes[rounds % len(sizes)]]
        passed, cost = follower.within(piece, budget)
        assert cost <= budget
        if passed < len(piece):  # then it goes no further without a new budget
            assert follower.within(piece[passed:], budget - cost)[0] == 0
        place, total, rounds = place + passed, total + cost, rounds + 1
    assert total == sum(price(kind) for kind, _ in frames)


def test_a_call_is_held_back_before_its_frame() -> None:
    before, call = wire.PREFACE + wire.settings(), wire.call(b"/a/B")
    follower = Follower()
    said = memoryview(before + call + call)
    assert follower.within(said, FRAME + CALL) == (len(before + call), FRAME + CALL)
    assert follower.within(memoryview(call), 0) == (0, 0)
    assert follower.within(memoryview(call), CALL) == (len(call), CALL)


def test_a_header_of_which_some_has_gone_on_already() -> None:
    call = wire.call(b"/a/B")
    for came in range(len(call)):
        follower = Follower()
        assert follower.within(memoryview(wire.PREFACE + call[:came]), CALL)[0] == 24 + came
        rest = memoryview(call[came:])
        if came <= 3:  # its kind is not known yet
            assert follower.within(rest, 0) == (0, 0)
            assert follower.within(rest, CALL) == (len(rest), CALL)
        else:
            assert follower.within(rest, 0) == (len(rest), 0)
