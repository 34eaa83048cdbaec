"""Has the anchors whom a client trusts judge what its audits open, where it cannot do so itself.

    opening ──> an anchor with the weights ──> verdict, and a receipt of the kind AUDIT that both sign
                   └─ none has time, or weights ──> inconclusive

Whoever is asked reads the text that the session was of, as far as hidden states tell it; so this is done for those
alone who want it. What an anchor says is believed: it is the root of this client's trust. It is not told whose work it
judges. Runs in the client's event loop; packing and hashing in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence

from dht.errors import DaemonDied, DhtError, ProtocolViolation
from dht.membership.members import read_message, write_message
from dht.work import WorkKind
from node.agreement.checkpoint import Checkpoint
from node.client.asked_form import (
    ANSWER_S,
    JUDGE_PROTOCOL,
    MAX_MESSAGE_BYTES,
    Answer,
    Question,
    leaf_of,
    pack_opening,
    send_blob,
    tokens_of,
    unpack_verdict,
)
from node.client.audit_book import Outcome, Verdict
from node.client.audit_opening import Opening
from node.client.dealings import Deal, Dealings
from node.client.reveal_call import Dialer
from node.client.route import Stage
from node.errors import CannotCheck, CannotSign, Refused, RemoteError, StageAtFault
from node.merkle import root_of
from node.transport import ByteStream

logger = logging.getLogger(__name__)

JUDGED_S = 120.0
"""A verdict is waited for so long, s: others may be judged before."""
ASIDE_S = 600.0
"""An anchor that does not judge is not asked again for so long, s."""
BUSY_S = 20.0
"""One that has no time now."""
_BUSY_CODES = frozenset({"busy", "lane"})


class AskedJudge:
    """Asks others for verdicts; call it with an opening.

    Args:
        dial: opens streams to peers.
        dealings: of the client: what it signs for.
        anchors: peer ids of who may be asked, as they are at any time.
        chance: chooses whom to ask first.
    """

    def __init__(
        self, dial: Dialer, dealings: Dealings, anchors: Callable[[], Sequence[str]],
        chance: random.Random = random.SystemRandom(),  # noqa: B008 - it has no state
    ) -> None:  # fmt: skip
        self._dial = dial
        self._dealings = dealings
        self._anchors = anchors
        self._chance = chance
        self._aside_until_s: dict[str, float] = {}

    async def __call__(self, opening: Opening) -> Verdict:
        """Return what an anchor says of an opening; inconclusive where none does."""
        try:
            blob = await asyncio.to_thread(pack_opening, opening)
        except CannotCheck as error:
            return Verdict(Outcome.INCONCLUSIVE, str(error))
        why = "none of the anchors judges work now"
        for anchor in self._to_ask(opening):
            try:
                async with asyncio.timeout(JUDGED_S):
                    return await self._ask(anchor, opening, blob)
            except DaemonDied:
                raise
            except Refused as refusal:
                if refusal.code != "too_long":  # What is shorter it judges.
                    self._put_aside(anchor, BUSY_S if refusal.code in _BUSY_CODES else ASIDE_S)
                why = f"the anchor {anchor} does not judge it: {refusal}"
            except (DhtError, RemoteError, CannotSign, TimeoutError, EOFError, OSError) as error:
                self._put_aside(anchor, ASIDE_S)
                why = f"the anchor {anchor} does not judge it: {error or 'it does not answer'}"
            logger.info("%s", why)
        return Verdict(Outcome.INCONCLUSIVE, why)

    def _to_ask(self, opening: Opening) -> list[str]:
        now_s = time.monotonic()
        anchors = [each for each in self._anchors() if self._aside_until_s.get(each, 0.0) <= now_s]
        self._chance.shuffle(anchors)
        return [each for each in anchors if each != opening.stage.peer_id]  # Nobody judges himself.

    def _put_aside(self, anchor: str, for_s: float) -> None:
        self._aside_until_s[anchor] = time.monotonic() + for_s

    async def _ask(self, anchor: str, opening: Opening, blob: bytes) -> Verdict:
        judged = opening.stage
        stage = Stage(anchor, judged.start, judged.end, (), weights=judged.weights)
        session, tokens = secrets.token_bytes(16), tokens_of(opening)
        deal = self._dealings.offer(session, opening.manifest, opening.codec, stage, tokens, opening.left_padding)
        stream = await self._dial(anchor, JUDGE_PROTOCOL)
        try:
            self._dealings.expect(deal, WorkKind.AUDIT)
            await self._agree(stream, deal, len(blob))
            await send_blob(stream.writer, blob)
            said = await read_message(stream.reader, MAX_MESSAGE_BYTES)
            verdict = unpack_verdict(said)
            if body := await read_message(stream.reader, MAX_MESSAGE_BYTES):
                await self._sign(stream, deal, body, blob, said, tokens)
            await self._ended(stream)
            self._dealings.end(deal)
            return verdict
        finally:
            await stream.close()

    @staticmethod
    async def _ended(stream: ByteStream) -> None:
        """Wait until nothing of it is open at the other side, so that the lane may be taken again."""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(ANSWER_S):
                await stream.reader.read(1)

    async def _agree(self, stream: ByteStream, deal: Deal, size: int) -> None:
        await write_message(stream.writer, Question(deal.body, deal.signature, size).to_bytes())
        async with asyncio.timeout(ANSWER_S):
            answer = Answer.from_bytes(await read_message(stream.reader, MAX_MESSAGE_BYTES))
        if not answer.agreement:
            if answer.code == "lane":
                self._dealings.forget_lanes(deal.offer.provider)
            raise Refused(answer.code, answer.why)
        if not deal.is_accepted(answer.agreement):
            raise ProtocolViolation("an anchor has not signed the offer that it takes")

    async def _sign(self, stream: ByteStream, deal: Deal, body: bytes, blob: bytes, said: bytes, tokens: int) -> None:
        """Sign for what was done, as its receipt says it.

        Raises:
            StageAtFault: it counts what was not done, or commits to something else.
            CannotSign: our ledger does not take it.
        """
        account, now_s = self._dealings.account(deal), time.time()
        account.sent(1, WorkKind.AUDIT, tokens, len(blob), len(said), now_s)
        made = Checkpoint.from_body(body)
        leaf = await asyncio.to_thread(leaf_of, blob, said)
        answer = account.check(made, root_of([leaf.hash(deal.offer.session)]), now_s)
        if answer is None or not account.is_settled:
            raise StageAtFault(deal.offer.provider, "asks for a signature out of turn")
        self._dealings.keep(made, answer.signatures)
        await write_message(stream.writer, answer.to_body())
