"""How a client has somebody else judge what an audit has opened: the messages, byte by byte. Computes nothing.

    client ──[offer, signature, size]──> judge        a stream of /efedllm/judge/1 for each opening
           <──[state, signature, why]──               1: it takes the offer, and has signed so; 0: it does not
           ──opening──>
           <──[verdict, checkpoint]──                 a receipt of the kind AUDIT, where it was run again
           ──co-signature──>

An opening goes without the signatures that it stands under, and without saying whose work it is: the client has
compared hashes, and acts by itself on what it is told. Numbers are bounded here; whether sizes fit is seen where they
are used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from dht.codec import MAX_ITEMS, Fields, Value, decode, encode
from dht.errors import BadRecord
from dht.work import MAX_ERROR_PPM
from node.agreement.offers import Offer, pack_padding, padding_digest, profile_digest
from node.client.audit_book import Measured, Outcome, Verdict
from node.client.audit_opening import Given, Opening
from node.client.route import Stage
from node.client.thin_terms import ThinTerms
from node.commitment.chunks import Leaf
from node.errors import BadOpening, CannotCheck
from node.model.sampling import Sampling as TokenSampling
from node.wire import LOGITS, MAX_BATCH, MAX_LENGTH, MAX_TOP, Sampling

JUDGE_PROTOCOL = "/efedllm/judge/1"

MAX_ASKED_BYTES = 2**26
"""Of one opening."""
MAX_ASKED_TOKENS = 2**15
"""Rows times positions that are run again for one opening."""
MAX_MESSAGE_BYTES = 2**12
ANSWER_S = 10.0
"""That either side waits for the other's next message, or the next ``_SPELL_BYTES`` of an opening."""

_MAX_NAME_BYTES = 64
_MAX_WHY_BYTES = 400
_PIECE_BYTES = 2**16
_SPELL_BYTES = 2**19
"""Of an opening come in within ``ANSWER_S`` each: who is slower than 51 KiB/s is given up."""
_OUTCOMES = (Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE)
_NO_END, _LOGITS, _LIKELIEST, _DRAWN = range(4)
_SAMPLINGS: dict[int, Sampling] = {_LIKELIEST: (0.0, 0, 1.0, 0), _DRAWN: (1.0, 0, 1.0, 0)}


def tokens_of(opening: Opening) -> int:
    """Return how much is run again for an opening: rows times positions."""
    return opening.inputs.shape[0] * opening.end


def pack_opening(opening: Opening) -> bytes:
    """Write what is judged of an opening.

    Raises:
        CannotCheck: it is more than anybody is asked to judge.
    """
    outputs: list[Value] = [_pack_given(part) for part in opening.outputs]
    if len(outputs) > MAX_ITEMS or tokens_of(opening) > MAX_ASKED_TOKENS or _num_bytes(opening) > MAX_ASKED_BYTES:
        raise CannotCheck("It is too large to be sent to somebody else.")
    ends: list[Value] = list(_pack_ends(opening.thin))
    padding = pack_padding(opening.left_padding)
    name: list[Value] = [opening.stage.weights, opening.dtype, opening.codec]
    blob = encode([*name, opening.first, padding, ends, _pack_given(opening.inputs), outputs])
    if len(blob) > MAX_ASKED_BYTES:
        raise CannotCheck("It is too large to be sent to somebody else.")
    return blob


def _num_bytes(opening: Opening) -> int:
    return sum(len(part.payload) for part in (opening.inputs, *opening.outputs))


def _pack_given(given: Given) -> list[Value]:
    return [given.first, given.codec, *given.shape, given.payload]


def _pack_ends(thin: ThinTerms | None) -> tuple[int, int]:
    if thin is None:
        return _NO_END, 0
    if thin.sampling is None:
        return _LOGITS, thin.top
    return (_LIKELIEST if TokenSampling(*thin.sampling).takes_likeliest else _DRAWN), 0


def unpack_opening(blob: bytes, offer: Offer) -> Opening:
    """Read what is judged, and hold it against the offer; what only a client needs is left empty.

    Raises:
        BadOpening: it is malformed, or is not what the offer is for.
    """
    try:
        opening = _read(blob, offer)
    except BadRecord as error:
        raise BadOpening(f"What is to be judged cannot be read: {error}.") from error
    terms = (profile_digest(opening.stage.weights, opening.codec), padding_digest(opening.left_padding))
    if terms != (offer.profile, offer.padding) or tokens_of(opening) != offer.max_tokens:
        raise BadOpening("What is to be judged is not what the offer is for.")
    return opening


def _read(blob: bytes, offer: Offer) -> Opening:
    fields = Fields(decode(blob, MAX_ASKED_BYTES))
    weights, dtype, codec = (fields.text(name, _MAX_NAME_BYTES) for name in ("weights", "dtype", "codec"))
    first, padding = fields.uint("first", MAX_LENGTH), fields.some_bytes("left_padding", 4 * MAX_BATCH)
    thin = _read_ends(Fields(fields.items("ends", 2)))
    inputs = _read_given(fields.items("inputs", 6))
    outputs = tuple(_read_outputs(fields.items("outputs", MAX_ITEMS)))
    fields.end()
    if len(padding) % 4:
        raise BadRecord("counts of padding of other lengths than 4 bytes")
    if not outputs:
        raise BadRecord("nothing that came out")
    return Opening(
        manifest=offer.manifest,
        stage=Stage("", offer.start, offer.end, (), weights=weights),
        previous="",
        dtype=dtype,
        profile=offer.profile,
        codec=codec,
        session=offer.session,
        segment=0,
        index=0,
        first=first,
        end=inputs.shape[1],
        left_padding=tuple(int.from_bytes(padding[at : at + 4], "big") for at in range(0, len(padding), 4)),
        thin=thin,
        inputs=inputs,
        outputs=outputs,
        leaves=(),
        receipt=b"",
        offer=b"",
        offer_signature=b"",
        accept_signature=b"",
        headers={},
    )


def _read_ends(fields: Fields) -> ThinTerms | None:
    kind, top = fields.uint("ends", _DRAWN), fields.uint("top", MAX_TOP)
    fields.end()
    if kind == _NO_END:
        return None
    return ThinTerms(top if kind == _LOGITS else 0, _SAMPLINGS.get(kind))


def _read_outputs(items: list[object]) -> Iterator[Given]:
    for item in items:
        yield _read_given(item)


def _read_given(item: object) -> Given:
    fields = Fields(item)
    first, codec = fields.uint("first", MAX_LENGTH), fields.text("codec", len(LOGITS) + _MAX_NAME_BYTES)
    rows = fields.uint("rows", MAX_BATCH, min_value=1)
    tokens = fields.uint("positions", MAX_LENGTH, min_value=1)
    width = fields.uint("width", MAX_LENGTH, min_value=1)
    payload = fields.some_bytes("payload", MAX_ASKED_BYTES)
    fields.end()
    return Given(first, codec, (rows, tokens, width), payload)


@dataclass(frozen=True, slots=True)
class Question:
    """What a client begins with."""

    offer: bytes
    """Body of its offer: for how many tokens of which blocks, held how."""
    signature: bytes
    """Its own, 64 bytes."""
    size: int
    """Of the opening, bytes."""

    def to_bytes(self) -> bytes:
        """Encode canonically."""
        return encode([self.offer, self.signature, self.size])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(data, MAX_MESSAGE_BYTES))
        offer, signature = fields.some_bytes("offer", Offer.MAX_BYTES), fields.blob("signature", 64)
        size = fields.uint("size", MAX_ASKED_BYTES, min_value=1)
        fields.end()
        return cls(offer, signature, size)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a judge takes an offer."""

    agreement: bytes
    """Its signature over the offer, 64 bytes; empty: it does not."""
    code: str = ""
    """Why not, for programs."""
    why: str = ""
    """For people."""

    def to_bytes(self) -> bytes:
        """Encode canonically."""
        return encode([int(bool(self.agreement)), self.agreement, self.code, _cut(self.why)])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(data, MAX_MESSAGE_BYTES))
        is_taken = fields.uint("state", 1) == 1
        agreement = fields.blob("agreement", 64 if is_taken else 0)
        code, why = fields.text("code", _MAX_NAME_BYTES), fields.text("why", _MAX_WHY_BYTES)
        fields.end()
        return cls(agreement, code, why)


def pack_verdict(verdict: Verdict) -> bytes:
    """Write what a judge says; what it measured only where there is something."""
    measured = verdict.measured
    numbers: list[Value] = []
    if measured is not None:
        numbers = [measured.median_ppm, measured.upper_ppm, measured.max_ppm, measured.calibration]
    return encode([_OUTCOMES.index(verdict.outcome), _cut(verdict.why), numbers])


def unpack_verdict(data: bytes) -> Verdict:
    """Read what a judge says.

    Raises:
        BadRecord: it is malformed, or condemns without having measured anything.
    """
    fields = Fields(decode(data, MAX_MESSAGE_BYTES))
    outcome = _OUTCOMES[fields.uint("outcome", len(_OUTCOMES) - 1)]
    why, numbers = fields.text("why", _MAX_WHY_BYTES), Fields(fields.items("measured", 4))
    fields.end()
    measured = None
    if numbers.more():
        median, upper, largest = (numbers.uint(name, MAX_ERROR_PPM) for name in ("median", "upper", "largest"))
        measured = Measured(median, upper, largest, numbers.blob("calibration", 32))
        numbers.end()
        if not median <= upper <= largest:
            raise BadRecord("a median above the upper quantile, or that above the largest")
    elif outcome is not Outcome.INCONCLUSIVE:
        raise BadRecord("a verdict on what was not measured")
    return Verdict(outcome, why, measured)


def _cut(why: str) -> str:
    printable = "".join(each if each.isprintable() else " " for each in why)
    return printable.encode()[:_MAX_WHY_BYTES].decode(errors="ignore")


def leaf_of(blob: bytes, verdict: bytes) -> Leaf:
    """Return what stands under the root of a judge's receipt: what it was given, and what it said of it."""
    taken, given = sha256(blob).digest(), sha256(verdict).digest()
    return Leaf(segment=0, index=0, first=0, header=sha256(b"").digest(), taken=taken, given=given)


async def send_blob(writer: asyncio.StreamWriter, blob: bytes) -> None:
    """Send bytes whose number the other side knows.

    Raises:
        TimeoutError: it does not take them.
    """
    for at in range(0, len(blob), _PIECE_BYTES):
        writer.write(blob[at : at + _PIECE_BYTES])
        async with asyncio.timeout(ANSWER_S):
            await writer.drain()


async def receive_blob(reader: asyncio.StreamReader, size: int) -> bytes:
    """Receive so many bytes.

    Raises:
        TimeoutError: they do not come.
        asyncio.IncompleteReadError: the stream ended.
    """
    pieces = []
    while size:
        async with asyncio.timeout(ANSWER_S):
            pieces.append(await reader.readexactly(min(size, _SPELL_BYTES)))
        size -= len(pieces[-1])
    return b"".join(pieces)
