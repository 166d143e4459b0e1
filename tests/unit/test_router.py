"""The route of a path: of all patterns that fit, the one with a fixed segment where another has a name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moorage.api.routes import ROUTES, Router

SEGMENTS = sorted({part for route in ROUTES for part in route.pattern.split("/")[1:]} | {"x", "", "csi/x"})
ROUTER = Router(ROUTES)


def find_plainly(parts: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """By trying all patterns; fixed segments count the more, the earlier they are."""
    found: list[tuple[list[bool], str, tuple[str, ...]]] = []
    for route in ROUTES:
        pattern = route.pattern.split("/")[1:]
        if len(pattern) == len(parts) and all(p.startswith(":") or p == q for p, q in zip(pattern, parts, strict=True)):
            taken = tuple(q for p, q in zip(pattern, parts, strict=True) if p.startswith(":"))
            found.append(([not p.startswith(":") for p in pattern], route.pattern, taken))
    return max(found)[1:] if found else None


@given(
    st.one_of(
        st.lists(st.sampled_from(SEGMENTS), max_size=6),
        st.sampled_from(ROUTES).flatmap(
            lambda route: st.tuples(
                *(
                    st.sampled_from([p, "why", "x"]) if p.startswith(":") else st.just(p)
                    for p in route.pattern.split("/")[1:]
                )
            )
        ),
    ).map(tuple)
)
def test_a_path_has_the_route_that_fits_it_best(parts: tuple[str, ...]) -> None:
    found = ROUTER.find(parts)
    assert (found and (found.route.pattern, found.arguments)) == find_plainly(parts)
