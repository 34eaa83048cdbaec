"""Judges what members' audits have opened, for a receipt: a verifier's work for clients that cannot do it themselves.

    member ──offer, opening──> desk ──> judge ──> verdict and checkpoint ──> member ──co-signature──> ledger

One opening is judged at a time, and as long again nothing is, so that the verifier's own canaries go on. What comes is
believed in so far as its sender alone is told what follows from it: the desk publishes and claims nothing. Runs in the
event loop; the judge in its thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from dht.errors import BadRecord, ProtocolViolation
from dht.membership.members import read_message, write_message
from dht.swarm import Stream, Swarm
from dht.work import Slot, WorkKind
from node.agreement.checkpoint import Cosign
from node.agreement.exposure import COSIGN_TIMEOUT_S
from node.agreement.offers import Lane, Offer, accept
from node.agreement.provider import ProviderAccount
from node.check.patience import until_cancelled
from node.client.asked_form import (
    ANSWER_S,
    JUDGE_PROTOCOL,
    MAX_ASKED_TOKENS,
    MAX_MESSAGE_BYTES,
    Answer,
    Question,
    leaf_of,
    pack_verdict,
    receive_blob,
    unpack_opening,
)
from node.client.audit_book import Outcome, Verdict
from node.client.audit_opening import Opening
from node.errors import NodeError, Refused, RemoteError
from node.merkle import root_of
from node.serve.contracts import Contracts

logger = logging.getLogger(__name__)

MAX_WAITING = 4
"""Openings that are held at once, the one that is judged included."""
MAX_NEW = 2
"""Of these, of members that have signed for nothing here yet: new names must not keep the others from it."""
FIRST_TOKENS = 1024
"""Rows times positions that are run again at once for a member at first; later twice what it has signed for."""
MAX_REST_S = 60.0
_UPLOAD_S = 120.0
"""An opening may be so long on its way, s."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One opening that a member has had judged, for people and scripts."""

    consumer: str
    """Peer id of the member."""
    start: int
    end: int
    tokens: int
    """Rows times positions that were run again; 0: nothing was."""
    outcome: Outcome
    is_signed: bool
    """Whether both have signed for it."""


class JudgeDesk:
    """Takes openings of one model from members. Ended by ``close``, while there still is a ledger.

    Args:
        contracts: of the verifier: what it agrees to and signs.
        manifest: of the model, 32 bytes.
        num_blocks: of the model.
        judge: judges an opening by itself; called in a thread.
        tell: told what was judged.
    """

    def __init__(
        self,
        contracts: Contracts,
        manifest: bytes,
        num_blocks: int,
        judge: Callable[[Opening], Verdict],
        tell: Callable[[Judged], None],
    ) -> None:
        self._contracts = contracts
        self._manifest = manifest
        self._num_blocks = num_blocks
        self._judge = judge
        self._tell = tell
        self._held: Counter[str] = Counter()
        self._new: set[str] = set()
        """Members that hold a place and have signed for nothing here yet."""
        self._turn = asyncio.Lock()
        self._rests_until_s = 0.0
        self._handling: set[asyncio.Task[object]] = set()
        self._is_closed = False

    async def start(self, swarm: Swarm) -> None:
        """Answer members that ask."""
        await swarm.serve(JUDGE_PROTOCOL, self.handle)

    async def close(self) -> None:
        """Take nothing any more, and give up what is under way; nobody is to blame for that."""
        self._is_closed = True
        for task in self._handling:
            task.cancel()
        await asyncio.gather(*self._handling, return_exceptions=True)

    async def handle(self, stream: Stream) -> None:
        """Judge one opening; the stream's end says that nothing of it is open any more."""
        task = asyncio.current_task()
        assert task is not None
        if self._is_closed:
            return
        self._handling.add(task)
        try:
            await self._handle(stream)
        finally:
            self._handling.discard(task)

    async def _handle(self, stream: Stream) -> None:
        async with asyncio.timeout(ANSWER_S):
            question = Question.from_bytes(await read_message(stream.reader, MAX_MESSAGE_BYTES))
        try:
            await self._take(stream, question)
        except Refused as refusal:
            await write_message(stream.writer, Answer(b"", refusal.code, str(refusal)).to_bytes())
            await stream.finish()

    async def _take(self, stream: Stream, question: Question) -> None:
        if self._held[stream.peer_id] or self._held.total() >= MAX_WAITING:
            raise Refused("busy", "No time now; ask again in a while, or somebody else.", retryable=True)
        self._held[stream.peer_id] += 1
        try:
            lane, account = await self._agree(stream.peer_id, question)
            is_ours = True
            try:
                blob = await self._receive(stream, question)
                async with self._turn:
                    await asyncio.sleep(self._rests_until_s - time.monotonic())
                    _check_is_waiting(stream)
                    verdict = await self._judged(blob, lane.offer)
                _check_is_waiting(stream)
                is_ours = False
                is_signed = await self._answer(stream, lane.offer, account, blob, verdict)
            finally:
                await self._contracts.end(lane, account, is_ours=is_ours)
        finally:
            self._held -= Counter([stream.peer_id])
            self._new.discard(stream.peer_id)
        self._say(lane.offer, verdict, is_signed=is_signed)

    async def _receive(self, stream: Stream, question: Question) -> bytes:
        await write_message(stream.writer, Answer(accept(question.offer, self._contracts.desk.sign)).to_bytes())
        async with asyncio.timeout(_UPLOAD_S):
            return await receive_blob(stream.reader, question.size)

    async def _agree(self, consumer: str, question: Question) -> tuple[Lane, ProviderAccount]:
        try:
            offer = Offer.from_body(question.offer)
        except BadRecord as error:
            raise Refused("bad_offer", f"The offer cannot be read: {error}.") from error
        if offer.manifest != self._manifest or offer.end > self._num_blocks:
            raise Refused("unsupported", "This verifier has another model.")
        if not 1 <= offer.max_tokens <= MAX_ASKED_TOKENS:
            raise Refused("too_long", f"Up to {MAX_ASKED_TOKENS} tokens are judged at once.")
        wanted = replace(offer, consumer=consumer, provider=self._contracts.desk.own)
        lane, account, _, signed_tokens = await self._contracts.agree(wanted, question.offer, question.signature)
        try:
            self._bound(offer, consumer, signed_tokens)
        except Refused:
            await self._contracts.end(lane, account, is_ours=True)
            raise
        slot = Slot(offer.provider, consumer, lane.epoch, offer.lane, WorkKind.AUDIT)
        self._contracts.desk.expect(slot)
        return lane, account

    def _bound(self, offer: Offer, consumer: str, signed_tokens: int) -> None:
        """Pass if so much is run again for a member that has signed for so many tokens here; raises Refused."""
        most = max(FIRST_TOKENS, 2 * signed_tokens)
        if offer.max_tokens > most:
            raise Refused(
                "too_long", f"Up to {most} tokens are judged for you at once, until you have signed for more."
            )
        if not signed_tokens:
            if len(self._new) >= MAX_NEW:
                raise Refused("busy", "No time for newcomers now; ask again in a while.", retryable=True)
            self._new.add(consumer)

    async def _judged(self, blob: bytes, offer: Offer) -> Verdict:
        began_s = time.monotonic()
        try:
            opening = await asyncio.to_thread(unpack_opening, blob, offer)
            return await until_cancelled(self._judge, opening)
        except NodeError as error:
            return Verdict(Outcome.INCONCLUSIVE, str(error))
        except Exception:  # What a member sends must not end the verifier.
            logger.warning("an opening of a member could not be judged", exc_info=True)
            return Verdict(Outcome.INCONCLUSIVE, "It could not be judged.")
        finally:
            now_s = time.monotonic()
            self._rests_until_s = now_s + min(MAX_REST_S, now_s - began_s)

    async def _answer(
        self, stream: Stream, offer: Offer, account: ProviderAccount, blob: bytes, verdict: Verdict
    ) -> bool:
        """Say the verdict, and have what was run again signed for; say whether it is."""
        said = pack_verdict(verdict)
        await write_message(stream.writer, said)
        if not verdict.was_run:
            await write_message(stream.writer, b"")
            return False
        account.count(WorkKind.AUDIT, offer.max_tokens, len(blob), len(said), time.time())
        leaf = await asyncio.to_thread(leaf_of, blob, said)
        made = account.checkpoint([leaf], root_of([leaf.hash(offer.session)]), 1)
        await write_message(stream.writer, made.to_body())
        try:
            async with asyncio.timeout(COSIGN_TIMEOUT_S):
                answer = Cosign.from_body(await read_message(stream.reader, Cosign.MAX_BYTES))
            envelopes = account.cosigned(answer)
        except (TimeoutError, EOFError, OSError, ProtocolViolation, RemoteError) as error:
            logger.info("member %s has not signed for what was judged for it: %s", offer.consumer, error)
            return False
        self._contracts.desk.keep(envelope.to_bytes() for envelope in envelopes)
        return True

    def _say(self, offer: Offer, verdict: Verdict, *, is_signed: bool) -> None:
        tokens = offer.max_tokens if verdict.was_run else 0
        self._tell(Judged(offer.consumer, offer.start, offer.end, tokens, verdict.outcome, is_signed))


def _check_is_waiting(stream: Stream) -> None:
    """Pass if a member still waits for its verdict: who has given up is not judged for, nor blamed.

    Raises:
        EOFError: it has closed the stream.
    """
    if stream.reader.at_eof():
        raise EOFError
