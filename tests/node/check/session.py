"""A session at one stage that signs for what it does, and the evidence that its consumer can hand out."""

from dataclasses import dataclass, replace
from hashlib import sha256

from dht.claim import Claim
from dht.identity import Identity, verify
from dht.rules import DEFAULT_RULES
from dht.work import Receipt
from node.agreement.offers import Offer, accept, padding_digest, profile_digest
from node.check.evidence import Evidence, OpenedChunk, pack
from node.check.headers import Header, Piece
from node.commitment.chunks import WINDOW
from node.commitment.stage import StageCommitment
from node.wire import Step
from tests.dht.samples import EPOCH, receipt

PROVIDER, CONSUMER, ACCUSER = (Identity.from_seed(bytes([number]) * 32) for number in (11, 12, 13))
CODEC, WIDTH = "float32", 2
SIZE = 4 * WIDTH
PROFILE = profile_digest("float32", CODEC)


def inputs(position: int, tokens: int) -> bytes:
    return b"".join((position + number).to_bytes(4, "big") * WIDTH for number in range(tokens))


def outputs(position: int, tokens: int) -> bytes:
    return inputs(position + 2**20, tokens)


@dataclass(frozen=True)
class Session:
    """What the accused has signed of a session, and what its consumer kept."""

    offer: Offer
    receipt: Receipt
    evidence: Evidence  # for the last full chunk

    def claim(self, evidence: Evidence | None = None, *, blob: bytes | None = None, **changes) -> tuple[bytes, Claim]:
        """What an accuser publishes with some evidence, good or bad: the claim always names just that."""
        blob = pack(self.evidence if evidence is None else evidence) if blob is None else blob
        last = self.evidence.chunks[-1].leaf
        body = self.receipt.to_body()
        made = Claim(
            accuser=ACCUSER.peer_id,
            epoch=EPOCH,
            number=0,
            receipt=body,
            receipt_signature=PROVIDER.sign(Receipt.KIND, body),
            session=self.offer.session,
            segment=last.segment,
            index=last.index,
            error_ppm=500_000,
            evidence=sha256(blob).digest(),
            evidence_bytes=len(blob),
            t=DEFAULT_RULES.start_of(EPOCH) + 100,
        )
        return blob, replace(made, **changes)


def held(
    session: bytes = b"evidence session",
    lengths: tuple[int, ...] = (70, 1, 60, 70),
    lane: int = 7,
    provider: Identity = PROVIDER,
    epoch: int = EPOCH,
) -> Session:
    """Run a session of some steps of one row, and keep what is claimed of its third chunk."""
    stage = StageCommitment(session, CODEC, verify)
    pieces: dict[int, list[Piece]] = {}
    position = 0
    for tokens in lengths:
        step = Step(session, position, (1, tokens, WIDTH), CODEC, inputs(position, tokens))
        stage.take(step, 0)
        stage.give(step, 0, CODEC, step.shape, outputs(position, tokens))
        for first in range(position, position + tokens):
            window = pieces.setdefault(first // WINDOW, [])
            if window and first > position and window[-1].first + window[-1].num_positions == first:
                answered = int(first == position + tokens - 1)
                last = window.pop()
                window.append(last._replace(num_positions=last.num_positions + 1, num_answered=answered))
            else:
                window.append(Piece(first, 1, 1, int(first == position + tokens - 1)))
        position += tokens
    stage.seal()
    leaves, root = stage.report()
    parties = (session, CONSUMER.peer_id, provider.peer_id)
    offer = Offer(*parties, bytes(32), 0, 4, PROFILE, padding_digest(()), lane, 1000, 0)
    began = DEFAULT_RULES.start_of(epoch)
    counted = receipt(
        provider, CONSUMER, epoch=epoch, manifest=bytes(32), profile=PROFILE, lane=lane, commitment=root,
        t_first=began + 60, t_last=began + 62,
    )  # fmt: skip
    opened = []
    for number, leaf in enumerate(leaves[:3]):
        header = Header(CODEC, tuple(pieces[number])).to_bytes()
        opened.append(OpenedChunk(replace(leaf, voucher=b""), header, inputs(number * WINDOW, WINDOW)))
    evidence = Evidence(
        offer=offer.to_body(),
        offer_signature=CONSUMER.sign(128, offer.to_body()),
        accept_signature=accept(offer.to_body(), provider.sign),
        weights="float32",
        adapter="",
        left_padding=(),
        chunks=tuple(opened),
        given=outputs(2 * WINDOW, WINDOW),
        rest=tuple(leaf.hash(session) for leaf in leaves[3:]),
    )
    return Session(offer, counted, evidence)
