"""What receipts come to: each slot once, by its newest."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dht.identity import Identity
from dht.receipts.tally import Axis, Sum, Tally
from dht.work import WorkKind
from tests.dht.samples import receipt

PEERS = [Identity.ephemeral() for _ in range(4)]
P, C, D, E = PEERS


def done(provider=P, consumer=C, *, amount=64, **changes):
    return receipt(provider, consumer, amount=amount, work=4 * amount, **changes)


def test_of_one_slot_the_newest_receipt_counts_once():
    tally = Tally([done(seq=1, amount=64), done(seq=3, amount=192), done(seq=2, amount=128), done(seq=3, amount=192)])
    assert len(tally) == 1
    assert tally.by(Axis.PROVIDER) == {(P.peer_id, WorkKind.DECODE): Sum(1, 1, 192, 768, 64 * 1024, 64 * 1024)}


def test_lanes_kinds_epochs_and_consumers_add_up():
    tally = Tally([done(), done(lane=8), done(epoch=1), done(consumer=D), done(work_kind=WorkKind.PREFILL)])
    assert tally.by(Axis.PROVIDER)[P.peer_id, WorkKind.DECODE].amount == 4 * 64
    assert tally.by(Axis.CONSUMER)[C.peer_id, WorkKind.DECODE].receipts == 3
    assert tally.by_pair()[(P.peer_id, D.peer_id), WorkKind.DECODE].work == 256
    assert tally.by_kind()[WorkKind.PREFILL].amount == 64
    assert tally.by(Axis.MANIFEST)[bytes(done().manifest), WorkKind.DECODE].sessions == 4


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.integers(1, 9)), max_size=40))
def test_order_and_repetition_change_nothing(rows):
    made = [
        done(PEERS[provider], PEERS[consumer], lane=lane, seq=seq, amount=64 * seq)
        for provider, consumer, lane, seq in rows
        if provider != consumer
    ]
    shuffled = made * 2
    random.Random(0).shuffle(shuffled)
    for axis in Axis:
        assert Tally(made).by(axis) == Tally(shuffled).by(axis)
        assert sum(each.work for each in Tally(made).by(axis).values()) == sum(each.work for each in Tally(made))
