from types import SimpleNamespace

import msgpack
import pytest
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import ProtocolViolation
from dht.hardening.dictionary import unpack_dictionary
from dht.hardening.protocol import BUCKET_SIZE, MAX_ANSWER_BYTES, RECORDS_PER_CALL, _parts, dht_id_of
from tests.fuzz.answers import KEYS, MEMBER, Node, Peer

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
