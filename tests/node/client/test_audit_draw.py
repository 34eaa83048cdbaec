"""What is audited depends on the client's secret alone: whoever sees the session cannot tell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.client.audit_draw import PER_MILLE, SECRET_BYTES, WATCHED_PER_MILLE, Draw

PLACES = [(peer, segment, index) for peer in ("one", "other") for segment in (0, 2) for index in range(2000)]


def drawn(secret, per_mille):
    draw = Draw(secret, per_mille)
    return {place for place in PLACES if draw.is_drawn(*place)}


@pytest.mark.parametrize(
    ("per_mille", "least", "most"), [(0, 0, 0), (20, 100, 220), (500, 3800, 4200), (1000, 8000, 8000)]
)
def test_so_many_of_a_thousand_chunks_are_drawn(per_mille, least, most):
    assert least <= len(drawn(bytes(SECRET_BYTES), per_mille)) <= most


@given(st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES), st.integers(0, PER_MILLE), st.integers(0, 8))
def test_a_draw_is_the_same_every_time_and_grows_with_the_rate(secret, per_mille, more):
    place = ("a stage", 1, 5)
    assert Draw(secret, per_mille).is_drawn(*place) == Draw(secret, per_mille).is_drawn(*place)
    assert Draw(secret, per_mille).is_drawn(*place) <= Draw(secret, min(PER_MILLE, per_mille + more)).is_drawn(*place)


def test_another_secret_draws_others_and_so_does_another_stage():
    """Who knows the draw of one session, or of one stage, knows nothing of others: they meet by chance alone."""
    first, second = drawn(bytes(SECRET_BYTES), 200), drawn(b"\x01" * SECRET_BYTES, 200)
    assert 0.15 < len(first & second) / len(first) < 0.25
    one = {place[1:] for place in first if place[0] == "one"}
    other = {place[1:] for place in first if place[0] == "other"}
    assert 0.15 < len(one & other) / len(one) < 0.25


def test_of_peers_that_are_audited_wholly_every_chunk_is_drawn_and_of_others_as_always():
    draw = Draw(bytes(SECRET_BYTES), 200, {"one"})
    found = {place for place in PLACES if draw.is_drawn(*place)}
    others = {place for place in PLACES if place[0] == "other"}
    assert found == (set(PLACES) - others) | (drawn(bytes(SECRET_BYTES), 200) & others)


def test_of_peers_that_are_watched_more_is_drawn_and_nothing_where_nothing_is_audited():
    asked = []

    def is_watched(peer):
        asked.append(peer)
        return peer == "one"

    draw = Draw(bytes(SECRET_BYTES), 20, is_watched=is_watched)
    found = {place for place in PLACES if draw.is_drawn(*place)}
    ones = {place for place in PLACES if place[0] == "one"}
    assert found & ones == drawn(bytes(SECRET_BYTES), WATCHED_PER_MILLE) & ones
    assert found - ones == drawn(bytes(SECRET_BYTES), 20) - ones
    assert sorted(asked) == ["one", "other"], "the rate of a session does not change in it"
    closer = Draw(bytes(SECRET_BYTES), 500, is_watched=lambda _: True)
    assert {place for place in PLACES if closer.is_drawn(*place)} == drawn(bytes(SECRET_BYTES), 500)
    nothing = Draw(bytes(SECRET_BYTES), 0, is_watched=lambda _: True)
    assert not any(nothing.is_drawn(*place) for place in PLACES)
