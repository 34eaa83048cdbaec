"""Who holds blocks follows from what was signed for, and from nothing that is only said."""

from dht.identity import Identity
from dht.judgement.holdings import Holdings
from dht.work import WorkKind
from tests.dht.samples import EPOCH, MANIFEST, receipt

HALF, OTHER_HALF, WHOLE, CONSUMER = (Identity.from_seed(bytes([number]) * 32) for number in range(4))
NOW = range(EPOCH, EPOCH + 1)


def made(provider, start, end, **changes):
    work = changes.pop("amount", 64) * (1 if changes.get("work_kind") is WorkKind.RELAY else end - start)
    return receipt(provider, CONSUMER, start=start, end=end, work=work, **changes)


def test_a_holder_has_worked_on_every_block_in_one_span_or_in_several():
    spans = [made(HALF, 0, 4), made(OTHER_HALF, 4, 8), made(WHOLE, 2, 8), made(WHOLE, 0, 3, lane=8)]
    holdings = Holdings([*spans, *spans])
    assert holdings.holders(MANIFEST, 0, 8, NOW) == {WHOLE.peer_id}
    assert holdings.holders(MANIFEST, 0, 4, NOW) == {WHOLE.peer_id, HALF.peer_id}
    assert holdings.holders(MANIFEST, 5, 7, NOW) == {WHOLE.peer_id, OTHER_HALF.peer_id}
    assert holdings.holders(MANIFEST, 7, 9, NOW) == set()
    assert Holdings(spans[::-1]).holders(MANIFEST, 0, 8, NOW) == {WHOLE.peer_id}


def test_a_gap_another_model_another_time_or_relayed_weights_are_no_holding():
    assert not Holdings([made(WHOLE, 0, 3), made(WHOLE, 4, 8, lane=8)]).holders(MANIFEST, 0, 8, NOW)
    holdings = Holdings([made(WHOLE, 0, 8)])
    assert not holdings.holders(bytes(32), 0, 8, NOW)
    assert not holdings.holders(MANIFEST, 0, 8, range(EPOCH - 8, EPOCH))
    assert not Holdings([receipt(WHOLE, CONSUMER, work_kind=WorkKind.RELAY, work=64)]).holders(MANIFEST, 0, 4, NOW)
