"""Which members hold a region: the same by one key alone as by many keys at once."""

import random
from types import SimpleNamespace

import pytest
from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.hardening.density import ID_BITS
from dht.hardening.protocol import BUCKET_SIZE, dht_id_of
from dht.hardening.regions import Regions


class Everyone:
    """A swarm whose look-ups find what is nearest, without sockets."""

    def __init__(self, num: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.members = [self.member() for _ in range(num)]
        self.num_walks = 0
        protocol = SimpleNamespace(client_mode=True, p2p=SimpleNamespace(peer_id=self.member()))
        self.regions = Regions(protocol, self.walk, random.Random(seed))

    def member(self) -> PeerID:
        return PeerID(self.rng.randbytes(38))

    def keys(self, num: int) -> list[DHTID]:
        return [DHTID(self.rng.getrandbits(ID_BITS)) for _ in range(num)]

    async def walk(self, target, ask):
        self.num_walks += 1
        return sorted(self.members, key=lambda peer: target.xor_distance(dht_id_of(peer)))[:BUCKET_SIZE]


@pytest.mark.parametrize("num", [1, 3, 19, 20, 21, 60, 200, 1000])
async def test_many_keys_at_once_have_the_holders_that_each_has_alone(num):
    everyone = Everyone(num)
    keys = everyone.keys(500)
    many = await everyone.regions.find_many(keys)
    assert set(many) == set(keys)
    alone = {key: await everyone.regions.find(key) for key in keys}
    differing = [key for key in keys if set(many[key]) != set(alone[key])]
    assert not differing
    assert everyone.regions.num_crowded == 0


async def test_keys_of_one_block_share_its_look_ups_and_few_keys_are_looked_up_alone():
    everyone = Everyone(60)
    await everyone.regions.size()
    for num_keys, num_walks in ((2000, 16), (4, 4)):
        before = everyone.num_walks
        await everyone.regions.find_many(everyone.keys(num_keys))
        narrow = 7 * num_keys // 100  # look-ups of keys whose nearest members are narrow by chance
        assert num_walks <= everyone.num_walks - before <= num_walks + narrow


async def test_keys_that_ids_crowd_around_are_looked_up_alone_and_counted():
    everyone = Everyone(60)
    await everyone.regions.size()
    keys = everyone.keys(200)
    crowd = sorted((everyone.member() for _ in range(40_000)), key=lambda peer: keys[0].xor_distance(dht_id_of(peer)))
    everyone.members += crowd[:25]
    found = await everyone.regions.find_many(keys)
    honest = set(everyone.members[:60])
    nearest = sorted(honest, key=lambda peer: keys[0].xor_distance(dht_id_of(peer)))
    assert everyone.regions.num_crowded > 0
    assert len(set(nearest[:10]) & set(found[keys[0]])) >= 5, "honest members hold it, whoever surrounds it"
    assert all(honest & set(found[key]) for key in keys)
