"""What receipts add up to, whatever order they come in."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dht.identity import Identity
from dht.reputation import Work
from dht.standing.workbook import Workbook
from dht.work import WorkKind, work_of
from tests.dht.samples import EPOCH, receipt

PEERS = [Identity.ephemeral() for _ in range(3)]
PAIRS = [(p, c) for p in PEERS for c in PEERS if p is not c]


def made(pair, *, ago=0, lane=1, seq=1, amount=10, kind=WorkKind.DECODE):
    provider, consumer = pair
    work = work_of(kind, amount, 0, 4)
    return receipt(provider, consumer, epoch=EPOCH - ago, lane=lane, seq=seq, amount=amount, work=work, work_kind=kind)


histories = st.lists(
    st.builds(
        made,
        st.sampled_from(PAIRS),
        ago=st.integers(0, 3),
        lane=st.integers(0, 1),
        seq=st.integers(1, 9),
        kind=st.sampled_from([WorkKind.DECODE, WorkKind.AUDIT, WorkKind.RELAY]),
    ),
    max_size=30,
).map(lambda receipts: [replace(each, amount=10 * each.seq, work=each.seq * each.work) for each in receipts])


@given(histories, st.randoms())
def test_the_order_and_the_repetition_of_receipts_change_nothing(receipts, chance):
    shuffled = [*receipts, *receipts]
    chance.shuffle(shuffled)
    assert set(Workbook(receipts).works(EPOCH)) == set(Workbook(shuffled).works(EPOCH))


@given(histories)
def test_of_each_slot_the_newest_counts_and_slots_of_a_pair_and_epoch_add_up(receipts):
    newest = {}
    for each in receipts:
        if each.slot not in newest or newest[each.slot].seq < each.seq:
            newest[each.slot] = each
    expected = {}
    for each in newest.values():
        pair = (each.consumer, each.provider, each.epoch)
        expected[pair] = expected.get(pair, 0) + each.work
    assert set(Workbook(receipts).works(EPOCH)) == {Work(*pair, work) for pair, work in expected.items()}


def test_what_is_later_than_asked_for_or_dropped_does_not_count():
    book = Workbook([made(PAIRS[0], ago=ago) for ago in range(4)])
    assert {work.epoch for work in book.works(EPOCH - 1)} == {EPOCH - 1, EPOCH - 2, EPOCH - 3}
    kept = book.copy()
    book.drop_before(EPOCH - 1)
    assert {work.epoch for work in book.works(EPOCH)} == {EPOCH, EPOCH - 1}
    assert {each.epoch for each in book.spans()} == {EPOCH, EPOCH - 1}
    assert len(kept.works(EPOCH)) == 4, "what was copied before stays as it was"


def test_a_span_is_remembered_once_for_each_provider_and_epoch():
    book = Workbook([made(PAIRS[0], lane=lane, ago=ago) for lane in range(5) for ago in range(2)])
    assert sorted(each.epoch for each in book.spans()) == [EPOCH - 1, EPOCH]


def test_relayed_weights_and_audits_count_as_their_receipts_have_it():
    book = Workbook([made(PAIRS[0], kind=WorkKind.RELAY), made(PAIRS[0], kind=WorkKind.AUDIT)])
    (work,) = book.works(EPOCH)
    assert work.work == 10 + 4 * 10
