"""Sums of receipts."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dht.receipts.totals import Change, Newest, Totals, group, totals_of
from dht.work import WorkKind
from tests.dht.receipts.ledger_kit import CONSUMER, OTHER, OWN, made


def test_a_change_counts_what_came_since_the_receipt_before():
    newest, before = made(seq=3, sessions=2, bytes_in=500), made(seq=1, bytes_in=100)
    assert totals_of([Change(newest, before)]) == Totals(128, 0, 512, 0, 400, 0, 1)


def test_prefill_and_decode_of_a_session_are_one_session():
    decode, prefill = made(sessions=3), made(work_kind=WorkKind.PREFILL, amount=1000, sessions=2)
    total = totals_of([Change(decode), Change(prefill), Change(made(lane=8))])
    assert (total.sessions, total.tokens, total.prefill_tokens) == (4, 1128, 1000)


def test_relayed_weights_are_no_tokens():
    relayed = replace(made(), work_kind=WorkKind.RELAY, work=64)
    assert totals_of([Change(relayed)]) == Totals(relayed_kib=64, bytes_in=65536, bytes_out=65536, sessions=1)


def test_groups_come_with_the_most_work_first():
    changes = [Change(made()), Change(made(consumer=OTHER, seq=2)), Change(made(lane=8))]
    by_consumer = group([*changes, Change(made(consumer=OTHER, lane=9))], lambda receipt: receipt.consumer)
    assert [(peer, total.tokens) for peer, total in by_consumer] == [(OTHER.peer_id, 192), (CONSUMER.peer_id, 128)]
    assert group([], lambda receipt: receipt.consumer) == []
    assert OWN.peer_id not in dict(by_consumer)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 50), st.booleans()), max_size=20), st.randoms())
def test_groups_add_up_to_the_whole_in_whatever_order(entries, random):
    changes = [Change(made(lane=lane, seq=n, consumer=OTHER if other else CONSUMER)) for lane, n, other in entries]
    shuffled = random.sample(changes, len(changes))
    groups = group(changes, lambda receipt: receipt.consumer)
    assert groups == group(shuffled, lambda receipt: receipt.consumer)
    assert sum((total for _, total in groups), Totals()) == totals_of(changes)


PEERS = [OWN, CONSUMER, OTHER]


def test_of_one_slot_the_newest_receipt_counts_once():
    newest = Newest([made(seq=1), made(seq=3), made(seq=2), made(seq=3)])
    assert len(newest) == 1
    assert totals_of(newest.changes()).tokens == 3 * 64


def test_lanes_kinds_epochs_and_consumers_add_up():
    newest = Newest([made(), made(lane=8), made(epoch=1), made(consumer=OTHER), made(work_kind=WorkKind.PREFILL)])
    assert totals_of(newest.changes()).tokens == 5 * 64
    assert dict(group(newest.changes(), lambda receipt: receipt.work_kind))[WorkKind.PREFILL].tokens == 64
    by_manifest = group(newest.changes(), lambda receipt: receipt.manifest)
    assert [total.block_tokens for _, total in by_manifest] == [5 * 256]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(1, 9)), max_size=30))
def test_order_and_repetition_change_nothing(entries):
    receipts = [made(PEERS[one], PEERS[other], lane=lane, seq=seq) for one, other, lane, seq in entries if one != other]
    backwards = Newest([*receipts[::-1], *receipts])
    assert totals_of(Newest(receipts).changes()) == totals_of(backwards.changes())
    by_provider = group(backwards.changes(), lambda receipt: receipt.provider)
    assert sum((total for _, total in by_provider), Totals()) == totals_of(backwards.changes())
