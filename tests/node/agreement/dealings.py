"""A consumer and a provider with everything that they need for agreements in tests."""

import hashlib
from random import Random

from dht.domains import Domain
from dht.identity import Identity, verify
from dht.rules import Rules
from node.agreement.consumer import ConsumerAccount
from node.agreement.exposure import UNITS
from node.agreement.offers import ConsumerLanes, LaneBook, Offer, padding_digest, profile_digest
from node.agreement.provider import ProviderAccount

PROVIDER, CONSUMER, OTHER = (Identity.ephemeral() for _ in range(3))
MANIFEST = hashlib.sha256(b"a model").digest()
PROFILE = profile_digest("float32", "bfloat16")
RULES = Rules(epoch_s=1000)
BEGAN = 80_000 * 1000
NOW = BEGAN + 100.0


def offer(provider=PROVIDER, consumer=CONSUMER, *, lane=7, session=b"s" * 16, t=int(NOW), **changes):
    fields = {
        "session": session, "consumer": consumer.peer_id, "provider": provider.peer_id, "manifest": MANIFEST,
        "start": 0, "end": 4, "profile": PROFILE, "padding": padding_digest(()), "lane": lane, "max_tokens": 1024,
        "t": t,
    }  # fmt: skip
    return Offer(**(fields | changes))


def signed(made, identity=CONSUMER):
    return made.to_body(), identity.sign(Domain.OFFER, made.to_body())


class Reservations:
    """What each side has written down before it signed; refuses a number twice."""

    def __init__(self):
        self.last = {}

    def __call__(self, slot, seq):
        assert seq > self.last.get(slot, 0), f"{slot} is signed twice with {seq}"
        self.last[slot] = seq
        return seq


class Signer:
    """An identity that remembers what it has signed."""

    def __init__(self, identity):
        self.identity = identity
        self.bodies = []

    def __call__(self, domain, body):
        self.bodies.append(body)
        return self.identity.sign(domain, body)


class Dealing:
    """One session between two honest sides."""

    def __init__(self, *, cap=64 * UNITS, every=64, lanes=None, book=None, lane=None, now_s=NOW, rules=RULES):
        self.rules = rules
        self.book = book or LaneBook()
        self.lanes = lanes or ConsumerLanes(Random(1))
        self.offer = offer(t=int(now_s))
        self.consumer_lane = lane or self.lanes.take(PROVIDER.peer_id, self.offer.terms)
        self.offer = offer(t=int(now_s), lane=self.consumer_lane.number)
        self.lane = self.book.open(self.offer, rules.epoch_of(now_s))
        self.provider_signer, self.consumer_signer = Signer(PROVIDER), Signer(CONSUMER)
        self.provider = ProviderAccount(
            self.lane, rules, cap=cap, every=every, sign=self.provider_signer, verify=verify, reserve=Reservations()
        )
        self.consumer = ConsumerAccount(
            self.offer, self.consumer_lane, rules, sign=self.consumer_signer, verify=verify, reserve=Reservations()
        )
        self.steps = 0
        self.root = b"r" * 32

    def step(self, kind, tokens, now_s=NOW, known=0):
        self.steps += 1
        self.consumer.sent(self.steps, kind, tokens, 10 * tokens, 20 * tokens, now_s)
        self.provider.count(kind, tokens, 10 * tokens, 20 * tokens, now_s, known_tokens=known)

    def checkpoint(self):
        return self.provider.checkpoint((), self.root, self.steps)

    def settle(self, now_s=NOW):
        made = self.checkpoint()
        return self.provider.cosigned(self.consumer.check(made, self.root, now_s))
