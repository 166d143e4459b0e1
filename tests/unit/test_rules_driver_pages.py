"""Pages of what a driver lists: within its limit they pass through, others are cut without a loss."""

from __future__ import annotations

import pytest

from moorage.rules.driver_pages import Place, cut_page, parse_place


def list_all(driver: dict[str, tuple[tuple[int, ...], str]], entries_max: int) -> list[tuple[int, ...]]:
    """All pages of a driver that answers a token with entries and a next token."""
    pages, token = [], ""
    while True:
        place = parse_place(token)
        entries, next_token = driver[place.token]
        page, token = cut_page(entries, place, entries_max=entries_max, next_token=next_token)
        pages.append(page)
        assert len(pages) < 100
        if not token:
            return pages


TIDY = {"": ((1, 2), "t2"), "t2": ((3, 4), "t4"), "t4": ((5,), "")}
EVERYTHING_AT_ONCE = {"": ((1, 2, 3, 4, 5), "")}
TOO_MUCH_A_PAGE = {"": ((1, 2, 3), "moorage:odd"), "moorage:odd": ((4, 5), "")}


@pytest.mark.parametrize(
    ("driver", "pages"),
    [
        (TIDY, [(1, 2), (3, 4), (5,)]),
        (EVERYTHING_AT_ONCE, [(1, 2), (3, 4), (5,)]),
        (TOO_MUCH_A_PAGE, [(1, 2), (3,), (4, 5)]),
    ],
    ids=["tidy", "everything at once", "too much a page"],
)
def test_every_page_is_as_asked_and_nothing_is_lost(
    driver: dict[str, tuple[tuple[int, ...], str]], pages: list[tuple[int, ...]]
) -> None:
    assert list_all(driver, 2) == pages


@pytest.mark.parametrize("driver", [TIDY, EVERYTHING_AT_ONCE, TOO_MUCH_A_PAGE])
def test_without_a_cap_pages_are_the_drivers(driver: dict[str, tuple[tuple[int, ...], str]]) -> None:
    assert list_all(driver, 0) == [entries for entries, _ in driver.values()]


@pytest.mark.parametrize("token", ["", "t2", "moorage-skip:", "moorage-skip:x:t", "moorage-skip:-1:t", "a:b:c\n"])
def test_a_token_that_is_not_ours_is_the_drivers(token: str) -> None:
    assert parse_place(token) == Place(token)


def test_a_drivers_token_is_kept_whole() -> None:
    odd = "moorage-skip:4:a\n:b"
    _, token = cut_page((1, 2, 3), Place(odd), entries_max=1, next_token="")
    assert parse_place(token) == Place(odd, 1)


def test_a_list_that_has_become_shorter_ends() -> None:
    assert cut_page((1,), parse_place("moorage-skip:4:t"), entries_max=2, next_token="") == ((), "")
