"""A page token goes on where the page before ended, with the same filter, or is refused."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_pb2 import VM_STATE_RUNNING

from vmagentd.api import requests
from vmagentd.api.pages import MAX_READ, STEP, Pages, page_of
from vmagentd.errors import InvalidField
from vmagentd.model import OperationId, OperationPlace, Revision

SECRET = b"s" * 32
UUID = "6f1ed002-ab5a-4f4c-9d2c-0a6f1f4b8d11"
REQUEST = pb.ListVmsRequest(name_glob="web-*")


def refused(pages: Pages, token: str) -> None:
    with pytest.raises(InvalidField) as caught:
        pages.after(token)
    assert caught.value.field == "page_token"


@given(st.text(min_size=1, max_size=300))
def test_a_token_comes_back_as_its_key(key: str) -> None:
    token = Pages(REQUEST, SECRET).token(key)
    assert Pages(REQUEST, SECRET).after(token) == key
    assert token.isascii()


def test_a_token_tells_nothing_of_its_key() -> None:
    """It may be the place of something that its bearer may not see."""
    hidden = OperationPlace(accept_time=datetime(2026, 1, 2, tzinfo=UTC), id=OperationId(UUID))
    key = requests.operation_key(hidden)
    raw = base64.urlsafe_b64decode(Pages(pb.ListOperationsRequest(), SECRET).token(key))
    for told in (key, *key.split(":")):
        assert told.encode() not in raw


def test_no_token_is_the_first_page() -> None:
    assert Pages(REQUEST, SECRET).after("") is None


def test_size_and_token_are_no_part_of_the_filter() -> None:
    token = Pages(REQUEST, SECRET).token("key")
    other = pb.ListVmsRequest(name_glob="web-*", page_size=3, page_token=token)
    assert Pages(other, SECRET).after(token) == "key"


def test_making_pages_leaves_the_request_alone() -> None:
    request = pb.ListVmsRequest(page_size=3, page_token="t")
    Pages(request, SECRET)
    assert (request.page_size, request.page_token) == (3, "t")


def test_another_filter_is_refused() -> None:
    token = Pages(REQUEST, SECRET).token("key")
    refused(Pages(pb.ListVmsRequest(), SECRET), token)
    refused(Pages(pb.ListVmsRequest(name_glob="web-*", states=[VM_STATE_RUNNING]), SECRET), token)


def test_another_list_or_journal_is_refused() -> None:
    token = Pages(pb.ListTransitionsRequest(), SECRET).token("7")
    refused(Pages(pb.ListVmsRequest(), SECRET), token)
    refused(Pages(pb.ListTransitionsRequest(), b"t" * 32), token)


@given(st.text(min_size=1))
def test_any_other_text_is_refused(text: str) -> None:
    refused(Pages(REQUEST, SECRET), text)


@given(st.binary(max_size=40))
def test_any_other_bytes_are_refused(raw: bytes) -> None:
    refused(Pages(REQUEST, SECRET), base64.urlsafe_b64encode(b"\x02" + raw).decode())


@given(st.data())
def test_a_damaged_token_is_refused(data: st.DataObject) -> None:
    token = Pages(REQUEST, SECRET).token("some key")
    at = data.draw(st.integers(0, len(token.rstrip("=")) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_").filter(lambda char: char != token[at]))
    damaged = token[:at] + other + token[at + 1 :]
    # The last character may hold bits that belong to no byte.
    if base64.urlsafe_b64decode(damaged) != base64.urlsafe_b64decode(token):
        refused(Pages(REQUEST, SECRET), damaged)


def test_the_token_of_another_version_is_refused() -> None:
    raw = base64.urlsafe_b64decode(Pages(REQUEST, SECRET).token("key"))
    refused(Pages(REQUEST, SECRET), base64.urlsafe_b64encode(b"\x01" + raw[1:]).decode())


def test_an_endless_token_is_refused() -> None:
    refused(Pages(REQUEST, SECRET), "A" * 100_000)


@pytest.mark.parametrize("key", ["", "x", "-1", "1.0", "9" * 19, "9" * 5000, "٣", " 1"])
def test_a_forged_key_is_refused_like_any_other(key: str) -> None:
    request = pb.ListTransitionsRequest()
    request.page_token = Pages(request, SECRET).token(key)
    with pytest.raises(InvalidField) as caught:
        requests.history(request, SECRET)
    assert caught.value.field == "page_token"


def test_keys_of_both_lists() -> None:
    history = pb.ListTransitionsRequest()
    history.page_token = Pages(history, SECRET).token(str(2**63 - 1))
    assert requests.history(history, SECRET).after == Revision(2**63 - 1)
    vms = pb.ListVmsRequest()
    vms.page_token = Pages(vms, SECRET).token(f"{UUID}web")
    assert requests.list_vms(vms, SECRET).after == ("web", UUID)


# --- What is on a page ------------------------------------------------------------------------


class Numbers:
    """A list of as many numbers, with a record of how it was read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.limits: list[int] = []

    async def __call__(self, limit: int, after: int | None) -> range:
        self.limits.append(limit)
        begin = 0 if after is None else after + 1
        return range(begin, min(begin + limit, self.count))


async def page_with(
    numbers: Numbers, size: int, after: int | None, every: int
) -> tuple[tuple[int, ...], int | None]:
    return await page_of(
        numbers, size, after=after, passes=lambda n: n % every == 0, place=lambda n: n
    )


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("every", [1, 3, 999, 10_000])
@pytest.mark.parametrize("count", [0, 1, 999, 1000, 2001])
async def test_pages_make_the_whole_list(size: int, every: int, count: int) -> None:
    numbers = Numbers(count)
    page, after = await page_with(numbers, size, None, every)
    found = [*page]
    while after is not None:
        page, after = await page_with(numbers, size, after, every)
        assert len(page) <= size
        found += page
    assert found == [*range(0, count, every)]


async def test_a_page_of_few_is_not_sought_for_row_by_row() -> None:
    numbers = Numbers(5001)
    assert await page_with(numbers, 1, 0, 5000) == ((5000,), None)
    assert len(numbers.limits) <= 12


async def test_whoever_sees_all_has_no_more_read_than_asked_for() -> None:
    numbers = Numbers(5000)
    assert await page_with(numbers, 1, None, 1) == ((0,), 0)
    assert numbers.limits == [2]


async def test_a_search_ends_with_the_place_it_came_to() -> None:
    numbers = Numbers(10 * MAX_READ)
    page, after = await page_with(numbers, 5, 0, 5 * MAX_READ)
    assert page == ()
    assert after is not None
    assert sum(numbers.limits) == after < MAX_READ + STEP
