"""An offer says what a session is for, and a lane is never used for two things."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.domains import Domain
from dht.errors import BadRecord
from dht.identity import verify
from dht.records import Kind
from dht.work import WorkKind
from node.agreement import offers
from node.agreement.offers import (
    MAX_LANES,
    ConsumerLanes,
    LaneBook,
    Offer,
    Tally,
    accept,
    is_accepted,
    profile_digest,
    read_offer,
)
from node.errors import Refused
from tests.node.agreement.dealings import CONSUMER, MANIFEST, NOW, OTHER, PROVIDER, offer, signed

EPOCH = 80_000


def test_domains_of_signatures_lie_beyond_all_kinds_of_records():
    assert min(Domain) >= 128 > max(Kind)
    assert [(domain.name, int(domain)) for domain in Domain] == [("OFFER", 128), ("ACCEPT", 129), ("CHUNK", 130)]


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1), st.integers(0, 2**53), st.integers(0, 2**40))
def test_an_offer_is_read_as_it_was_written_and_no_longer_than_its_bound(session, lane, max_tokens, t):
    made = offer(session=session, lane=lane, max_tokens=max_tokens, t=t)
    assert Offer.from_body(made.to_body()) == made
    assert len(made.to_body()) <= Offer.MAX_BYTES


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_of_offers_do_anything_but_refuse(junk):
    with pytest.raises(BadRecord):
        Offer.from_body(junk)


@pytest.mark.parametrize("changes", [{"start": 4}, {"provider": CONSUMER.peer_id}])
def test_an_offer_for_no_blocks_or_for_oneself_is_refused(changes):
    with pytest.raises(BadRecord):
        Offer.from_body(replace(offer(), **changes).to_body())


def test_an_offer_that_fits_its_session_is_taken_and_its_acceptance_holds_for_it_alone():
    made = offer()
    assert read_offer(*signed(made), replace(made, lane=0, t=0), verify, NOW) == made
    acceptance = accept(made.to_body(), PROVIDER.sign)
    assert is_accepted(made, acceptance, verify)
    assert not is_accepted(replace(made, lane=8), acceptance, verify)
    assert not is_accepted(made, accept(made.to_body(), OTHER.sign), verify)
    assert not is_accepted(made, PROVIDER.sign(Domain.OFFER, made.to_body()), verify)


@pytest.mark.parametrize(
    "changes",
    [
        {"session": b"t" * 16}, {"start": 1}, {"end": 5}, {"manifest": bytes(32)}, {"profile": bytes(32)},
        {"max_tokens": 1}, {"provider": OTHER.peer_id}, {"consumer": OTHER.peer_id},
    ],
)  # fmt: skip
def test_an_offer_for_something_else_is_refused(changes):
    with pytest.raises(Refused, match="something else"):
        read_offer(*signed(replace(offer(), **changes)), offer(), verify, NOW)


def test_an_offer_that_somebody_else_signed_or_that_was_changed_is_refused():
    body, signature = signed(offer())
    with pytest.raises(Refused, match="not signed"):
        read_offer(*signed(offer(), OTHER), offer(), verify, NOW)
    with pytest.raises(Refused, match="not signed"):
        read_offer(offer(lane=8).to_body(), signature, offer(), verify, NOW)
    with pytest.raises(Refused, match="cannot be read"):
        read_offer(body + b"\x00", signature, offer(), verify, NOW)


def test_a_peer_whose_clock_is_five_minutes_off_is_told_so():
    with pytest.raises(Refused, match=r"Your clock is 300 s ahead of mine.*set it"):
        read_offer(*signed(offer(t=int(NOW) + 300)), offer(), verify, NOW)
    with pytest.raises(Refused, match="300 s behind"):
        read_offer(*signed(offer(t=int(NOW) - 300)), offer(), verify, NOW)


def test_profiles_differ_in_every_part():
    profiles = [profile_digest(*parts) for parts in (("a", "b"), ("b", "a"), ("ab", ""), ("a", "b", "c"), ("a", ""))]
    assert len(set(profiles)) == 5
    assert {len(profile) for profile in profiles} == {32}


def count_in(book, number=7, epoch=EPOCH, is_settled=True, **changes):
    """Open a lane, count something there, and close it."""
    lane = book.open(offer(lane=number, **changes), epoch)
    lane.tallies[epoch, WorkKind.DECODE] = Tally(t_first=NOW, t_last=NOW, amount=1)
    book.close(lane, is_settled=is_settled)
    return lane


def test_a_lane_is_open_in_one_session_at_a_time_and_its_counters_go_on_in_the_next():
    book = LaneBook()
    book.open(offer(lane=8), EPOCH)
    with pytest.raises(Refused, match="open in another session"):
        book.open(offer(lane=8), EPOCH)
    lane = count_in(book)
    assert book.open(offer(session=b"t" * 16), EPOCH) is lane


@pytest.mark.parametrize("changes", [{"start": 1}, {"end": 3}, {"manifest": bytes(32)}, {"profile": bytes(32)}])
def test_a_lane_is_for_one_manifest_span_and_profile(changes):
    book = LaneBook()
    count_in(book)
    with pytest.raises(Refused, match="other blocks or weights"):
        book.open(offer(**changes), EPOCH)


def test_nobody_counts_in_a_lane_where_something_is_not_signed_or_that_is_from_before_a_restart():
    book = LaneBook()
    book.close(book.open(offer(), EPOCH), is_settled=False)
    with pytest.raises(Refused, match="unsigned"):
        book.open(offer(), EPOCH)
    with pytest.raises(Refused, match="has been used"):
        LaneBook().open(offer(), EPOCH, was_used=True)


def test_a_consumer_cannot_fill_a_providers_memory_with_lanes():
    book = LaneBook()
    for number in range(MAX_LANES):
        count_in(book, number)
    with pytest.raises(Refused, match="one more"):
        book.open(offer(lane=MAX_LANES), EPOCH)
    book.open(offer(consumer=OTHER, lane=MAX_LANES), EPOCH)
    for number in range(MAX_LANES):  # Those of a past epoch make room: the ledger knows what is signed there.
        book.open(offer(lane=MAX_LANES + number), EPOCH + 1)
    assert len(book) == MAX_LANES + 1
    with pytest.raises(Refused, match="one more"):
        book.open(offer(lane=2 * MAX_LANES), EPOCH + 1)


def test_sessions_in_which_nothing_is_counted_use_up_no_lanes():
    book = LaneBook()
    for number in range(3 * MAX_LANES):
        book.close(book.open(offer(lane=number), EPOCH), is_settled=True)
    assert len(book) == 0


def test_many_consumers_cannot_fill_a_providers_memory_with_lanes(monkeypatch):
    monkeypatch.setattr(offers, "MAX_LANES_IN_ALL", 100)
    book = LaneBook()
    kept = book.open(offer(consumer=OTHER), EPOCH)
    for number in range(MAX_LANES):
        count_in(book, number)
        count_in(book, 0)
    assert len(book) == 100
    assert book._lanes[OTHER.peer_id, 7] is kept  # it is open
    assert (CONSUMER.peer_id, 0) in book._lanes  # opened just now
    assert (CONSUMER.peer_id, 1) not in book._lanes
    book.close(kept, is_settled=True)
    book.forget(EPOCH + 1)
    assert len(book) == 0
    assert not book._of


def test_lanes_are_looked_through_once_in_an_epoch_and_not_for_every_session():
    book = LaneBook()
    book.forget(EPOCH)
    count_in(book, epoch=EPOCH - 1)
    book.forget(EPOCH)
    assert len(book) == 1
    book.forget(EPOCH + 1)
    assert len(book) == 0


def test_a_consumer_takes_a_lane_again_only_when_its_session_has_ended_well_and_for_the_same():
    lanes, terms = ConsumerLanes(Random(3)), offer().terms
    first, second = lanes.take("a", terms), lanes.take("a", terms)
    assert first.number != second.number
    lanes.give_back(first, "a", terms)
    assert lanes.take("b", terms) is not first
    assert lanes.take("a", (MANIFEST, 0, 5, terms[3])) is not first
    assert lanes.take("a", terms) is first
    assert lanes.take("a", terms).number not in {first.number, second.number}
