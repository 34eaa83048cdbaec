import time
from dataclasses import replace
from types import SimpleNamespace

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import ProtocolViolation
from dht.hardening.dictionary import unpack_dictionary
from dht.hardening.protocol import (
    BUCKET_SIZE,
    MAX_ANSWER_BYTES,
    MAX_MODELS_OF_ONE,
    MAX_RECORDS_PER_STORE,
    RECORDS_PER_CALL,
    _parts,
    dht_id_of,
    worth_of,
)
from dht.hardening.storage import MAX_SUBKEYS
from dht.hardening.tenants import Worth
from dht.identity import Identity
from dht.records import Envelope, Kind, ManifestRecord, SignedRecord, dht_id, seal
from tests.dht.samples import announcement, receipt
from tests.fuzz.answers import KEYS, LONG, MEMBER, STANDING, Node, Peer

entries = st.lists(st.tuples(st.binary(max_size=70), st.binary(max_size=50), st.floats(0, 2e9)), max_size=20)


def packed_by_hivemind(records: list[tuple[object, object, float]]) -> bytes:
    with DictionaryDHTValue().freeze() as dictionary:
        for subkey, value, expires_s in records:
            dictionary.store(subkey, value, expires_s)
        return MSGPackSerializer.dumps(dictionary)


@given(entries)
def test_what_hivemind_packs_is_read_without_its_objects(records):
    newest = {}
    for subkey, value, expires_s in records:
        if subkey not in newest or newest[subkey][1] < expires_s:
            newest[subkey] = (value, expires_s)
    expected = {(subkey, *rest) for subkey, rest in newest.items()}
    assert set(unpack_dictionary(packed_by_hivemind(records), wrapped=True)) == expected


@given(st.binary(max_size=100))
def test_junk_is_a_violation_and_nothing_else(data):
    for wrapped in (True, False):
        try:
            unpack_dictionary(data, wrapped=wrapped)
        except ProtocolViolation:
            continue


@pytest.mark.parametrize(
    "fields",
    [
        5,
        [],
        [1.0, 2.0],
        [1.0, 2.0, 3],
        [1.0, 2.0, [[b"a", b"b"]]],
        [1.0, 2.0, [[1, b"b", 3.0]]],
        [1.0, 2.0, [[b"a", 2, 3.0]]],
        [1.0, 2.0, [[b"a", b"b", "soon"]]],
        [1.0, 2.0, [[b"a", b"b", None]]],
        [1.0, 2.0, [{}]],
    ],
)
def test_another_shape_is_a_violation(fields):
    packed = msgpack.packb(msgpack.ExtType(0x50, msgpack.packb(fields)))
    with pytest.raises(ProtocolViolation):
        unpack_dictionary(packed, wrapped=True)


def test_another_extension_type_is_a_violation():
    with pytest.raises(ProtocolViolation):
        unpack_dictionary(msgpack.packb(msgpack.ExtType(0x40, msgpack.packb([1.0, 2.0, []]))), wrapped=True)


def test_a_store_call_is_cut_where_p2pd_would_not_carry_it():
    large = bytes(MAX_ANSWER_BYTES // 2)
    items = [(number, large, 1.0, b"subkey") for number in range(5)]
    parts = list(_parts(items))
    assert [item for part in parts for item in part] == items
    assert all(sum(len(item[1]) for item in part) <= MAX_ANSWER_BYTES for part in parts)
    assert list(_parts([])) == []
    many = [(number, b"value", 1.0, b"subkey") for number in range(1000)]
    assert [item for part in _parts(many) for item in part] == many
    assert max(len(part) for part in _parts(many)) == RECORDS_PER_CALL


@pytest.mark.parametrize("node_id", [b"\xff" * 21, b"\x01" * 20])
def test_a_member_that_goes_by_an_id_that_is_none_or_anothers_is_as_one_without(node_id):
    node = Node()
    try:
        info = dht_pb2.NodeInfo(node_id=node_id)
        node.answer = dht_pb2.PingResponse(peer=info)
        assert node.run(node.protocol.call_ping(MEMBER)) is None
        context = SimpleNamespace(remote_id=MEMBER)
        assert node.run(node.protocol.rpc_ping(dht_pb2.PingRequest(peer=info, validate=True), context)) is not None
        node.answer = dht_pb2.StoreResponse(peer=info, store_ok=[True])
        assert node.run(node.protocol.call_store(MEMBER, KEYS[:1], [b"value"], 2e9, [b"subkey"])) == [True]
        assert not node.protocol.routing_table.uid_to_peer_id
    finally:
        node.close()


def asked_of(node: Node, *keys: DHTID) -> list[dht_pb2.FindResult]:
    request = dht_pb2.FindRequest(keys=[key.to_bytes() for key in keys], peer=dht_pb2.NodeInfo())
    return list(node.run(node.protocol.rpc_find(request, SimpleNamespace(remote_id=MEMBER))).results)


def test_a_key_that_a_flood_of_long_records_has_filled_is_still_read():
    node = Node()
    try:
        for number in range(2, 1300):
            node.protocol.storage.store_subkey(KEYS[0], number.to_bytes(2, "big"), bytes(100), 2e9)
        for number in range(2, 1300):
            node.protocol.storage.store_subkey(KEYS[0], number.to_bytes(2, "big"), bytes(3800), 2e9 + 1)
        (result,) = asked_of(node, KEYS[0])
        assert result.type == dht_pb2.FOUND_DICTIONARY
        assert STANDING[0].envelope in {value for _, value, _ in unpack_dictionary(result.value, wrapped=True)}
    finally:
        node.close()


def test_of_a_key_that_does_not_fit_into_an_answer_it_holds_what_fits(monkeypatch):
    monkeypatch.setattr("dht.hardening.protocol.MAX_ANSWER_BYTES", 9000)
    node = Node()
    try:
        for number in range(20):
            node.protocol.storage.store_subkey(KEYS[2], bytes([number]), bytes(1000), 2e9)
        seen: set[bytes] = set()
        for _ in range(100):
            (result,) = asked_of(node, KEYS[2])
            subkeys = [subkey for subkey, _, _ in unpack_dictionary(result.value, wrapped=True)]
            assert (len(subkeys), result.type) == (8, dht_pb2.FOUND_DICTIONARY)
            seen.update(subkeys)
        assert len(seen) == 20, "whom an answer leaves out is chance"
        together = asked_of(node, KEYS[0], KEYS[2])
        assert [each.type for each in together] == [dht_pb2.FOUND_DICTIONARY, dht_pb2.NOT_FOUND]
    finally:
        node.close()


def stored_by(node: Node, sender: Identity, *sealed: SignedRecord) -> list[bool]:
    request = dht_pb2.StoreRequest(peer=dht_pb2.NodeInfo())
    for signed in sealed:
        request.keys.append(dht_id(signed.key))
        request.subkeys.append(msgpack.packb(signed.subkey))
        request.values.append(signed.envelope)
        request.expiration_time.append(signed.expires_s)
    return list(
        node.run(node.protocol.rpc_store(request, SimpleNamespace(remote_id=PeerID(sender.peer_id_bytes)))).store_ok
    )


def test_one_author_cannot_fill_the_list_of_models():
    node, now_s = Node(), int(time.time())
    author, other = Identity.ephemeral(), Identity.ephemeral()

    def model(owner: Identity, number: int, t: int) -> SignedRecord:
        return seal(ManifestRecord(bytes([number]) * 32, owner.peer_id, t, 600, "m", "llama", 1, 1, 1), owner)

    try:
        many = [model(author, number, now_s) for number in range(40)]
        assert stored_by(node, author, *many).count(True) == MAX_MODELS_OF_ONE
        assert stored_by(node, author, model(author, 0, now_s + 1)) == [True]
        assert stored_by(node, other, model(other, 0, now_s)) == [True]
    finally:
        node.close()


def test_nobody_fills_a_key_in_the_names_of_others():
    node, now_s = Node(), int(time.time())
    member, other, consumer = (Identity.ephemeral() for _ in range(3))
    try:
        offers = [seal(announcement(each, t=now_s), each) for each in (member, other)]
        lists = [
            seal(ManifestRecord(bytes(32), each.peer_id, now_s, 600, "m", "llama", 1, 1, 1), each)
            for each in (member, other)
        ]
        assert stored_by(node, member, *offers, *lists) == [True, False, True, False]
        assert stored_by(node, other, *offers, *lists) == [True] * 4, "what stands there already has been taken"
        epoch = LONG.epoch_of(now_s)
        t = LONG.start_of(epoch)
        work = seal(receipt(other, consumer, epoch=epoch, t_first=t, t_last=t), other, consumer, rules=LONG)
        assert stored_by(node, member, work) == [True], "receipts are stored by whoever holds them"
    finally:
        node.close()


def test_one_member_who_has_begun_all_keys_of_a_node_makes_room_for_others(monkeypatch):
    node, now_s = Node(), int(time.time())
    monkeypatch.setattr("dht.hardening.storage.MAX_KEYS", 10 + len(node.protocol.storage))
    attacker, honest = Identity.ephemeral(), Identity.ephemeral()
    try:
        offers = [replace(announcement(attacker, t=now_s), manifest=bytes([number]) * 32) for number in range(40)]
        assert stored_by(node, attacker, *(seal(each, attacker) for each in offers)).count(True) == 10
        assert node.protocol.storage.num_refused == 30
        assert len(node.protocol.record_validator._verified) == 10, "the others were refused before they were checked"
        offer = replace(announcement(honest, t=now_s), manifest=bytes([200]) * 32)
        assert stored_by(node, honest, seal(offer, honest)) == [True]
    finally:
        node.close()


def test_what_names_its_sender_and_what_proves_something_is_worth_more_than_what_is_only_kept():
    author, keeper = Identity.ephemeral(), Identity.ephemeral()
    envelope = seal(announcement(author), author).envelope
    assert worth_of(author.peer_id_bytes, envelope) is Worth.OWN
    assert worth_of(keeper.peer_id_bytes, envelope) is Worth.KEPT
    proof = Envelope(Kind.EQUIVOCATION, author.peer_id_bytes, ()).to_bytes()
    assert worth_of(author.peer_id_bytes, proof) is worth_of(keeper.peer_id_bytes, proof) is Worth.LASTING


def test_a_store_call_is_bounded_by_its_records_however_they_are_packed():
    node = Node()
    checked: list[bytes] = []
    node.protocol.is_valid = lambda key, subkey, value, expires_s: checked.append(subkey) or False
    request = dht_pb2.StoreRequest(peer=dht_pb2.NodeInfo())
    for call in range(4):
        with DictionaryDHTValue().freeze() as dictionary:
            for number in range(MAX_SUBKEYS):
                dictionary.store(bytes([call]) + number.to_bytes(2, "big"), b"value", 2e9)
            request.values.append(MSGPackSerializer.dumps(dictionary))
        request.keys.append(KEYS[2].to_bytes())
        request.subkeys.append(node.protocol.IS_DICTIONARY)
        request.expiration_time.append(2e9)
    try:
        answer = node.run(node.protocol.rpc_store(request, SimpleNamespace(remote_id=MEMBER)))
        assert list(answer.store_ok) == [False] * 4
        assert len(checked) == MAX_RECORDS_PER_STORE
    finally:
        node.close()


def test_members_beyond_a_full_bucket_are_kept_in_reserve_within_bounds():
    node = Node()
    node.protocol.get_stub = lambda peer: Peer(dht_pb2.PingResponse(peer=info_of(peer)))
    try:
        table = node.protocol.routing_table
        for number in range(1000):
            peer = PeerID(MEMBER.to_bytes()[:6] + number.to_bytes(32, "big"))
            node.run(node.protocol.update_routing_table(dht_id_of(peer), peer))
        assert max(len(bucket.nodes_to_peer_id) for bucket in table.buckets) == BUCKET_SIZE
        assert max(len(bucket.replacement_nodes) for bucket in table.buckets) <= BUCKET_SIZE
        held = {each for bucket in table.buckets for each in (*bucket.nodes_to_peer_id, *bucket.replacement_nodes)}
        assert set(table.uid_to_peer_id) == set(table.peer_id_to_uid.values()) == held
    finally:
        node.close()


def info_of(peer: PeerID) -> dht_pb2.NodeInfo:
    return dht_pb2.NodeInfo(node_id=dht_id_of(peer).to_bytes())
