"""Signatures on which Ed25519 libraries disagree split no swarm: every node says what the golden vectors say."""

import json
from pathlib import Path

from hivemind.dht.routing import DHTID

from dht.ident import Ident
from dht.records import Envelope, Kind, place
from dht.rules import Rules
from tests.attacks.scene import evil_with, holds, scene_of

EDGES = json.loads((Path(__file__).parents[1] / "vectors" / "ed25519_edges.json").read_text())["edges"]
AGES = Rules(epoch_s=2**24, window_epochs=2**16)
"""The vectors are records of epoch 0, 1970; in this swarm they live on."""


async def test_an_edge_signer_is_stored_and_read_or_refused_by_all_alike():
    """Adversary 17, EdgeSigner: small-order keys, S beyond the order, points in other bytes or of mixed order."""
    edges = []
    for edge in EDGES:
        envelope = bytes.fromhex(edge["envelope"])
        record = Ident.from_body(Envelope.from_bytes(envelope).body)
        edges.append((edge, record, evil_with(place(record, envelope, AGES), "signature")))
    assert {edge["valid"] for edge, _, _ in edges} == {True, False}
    async with scene_of(AGES) as scene, scene.fresh_reader() as reader:
        for edge, record, evil in edges:
            assert await scene.spread(evil) == [edge["valid"]] * 2, edge["name"]
            for node in scene.honest:
                assert (holds(node, evil.key) == {evil.subkey: evil.envelope}) is edge["valid"], edge["name"]
            assert await reader.fetch(Kind.IDENT, record.key_parts()) == [record] * edge["valid"], edge["name"]
            for node in (*scene.honest, scene.adversary, reader):  # the next one may belong to the same place
                del node._overlay.protocol.storage[DHTID.generate(source=evil.key)]
