"""Fuzz the server's sessions: clients and stages that send what they like, in any order, on as many streams."""

from collections.abc import Callable
from dataclasses import replace

from dht.domains import Domain
from dht.errors import LedgerNotWritten, SeqsSpent
from dht.records import Kind
from dht.work import Receipt
from node.agreement.checkpoint import Checkpoint as CheckpointBody
from node.agreement.checkpoint import Cosign as CosignBody
from node.agreement.offers import Offer, padding_digest, profile_digest
from node.commitment.chunks import Tap
from node.errors import Refused, SessionError
from node.serve.session import Compute
from node.wire import (
    CODECS,
    IDS,
    MAX_LENGTH,
    Accept,
    Adopt,
    Checkpoint,
    Close,
    Cosign,
    Open,
    Probe,
    Replay,
    Step,
    Voucher,
    payload_bytes,
)
from tests.fuzz.draw import Draw
from tests.fuzz.frames import drawn_body
from tests.fuzz.serving import (
    CACHE_POSITIONS,
    CLIENT,
    HIDDEN,
    MANIFEST,
    NEXT,
    NUM_BLOCKS,
    SERVER,
    STAGE,
    MemoryStream,
    Serving,
    framed,
)

SESSIONS = tuple(bytes([number]) * 16 for number in range(3))
PEERS = {each.peer_id: each for each in (CLIENT, STAGE, NEXT)}
MAX_STREAMS = 24


class Peers:
    """Everybody whom the server talks to, in one hand."""

    def __init__(self, draw: Draw, serving: Serving | None = None) -> None:
        self.draw = draw
        self.serving = serving or Serving(counts=not draw.rarely(), offers_ends=draw.flag())
        self.controls: dict[bytes, MemoryStream] = {}
        self.pushes: dict[bytes, MemoryStream] = {}
        self._taps: dict[bytes, Tap] = {}
        """What the stage before has pushed in each session."""
        self._checkpoints: dict[bytes, list[bytes]] = {}
        self._lane = 0
        self.accepted = self.computed = self.signed = 0

    @property
    def session(self) -> bytes:
        return self.draw.one_of(SESSIONS)

    def act(self) -> None:
        """Do one thing."""
        acts = (
            self.push, self.push, self.work, self.open, self.turn, self.cosign, self.open_push, self.control,
            self.junk, self.leave, self.conditions, self.replay, self.adopt, self.work, self.work, self.server,
        )  # fmt: skip
        self.do(self.draw.one_of(acts))

    def do(self, act: Callable[[], None]) -> None:
        """Do something, and see what the server makes of it."""
        act()
        self.serving.turn()
        self._listen()

    # What is valid, or nearly so.

    def work(self) -> None:
        """A client opens a session unless it has one, and goes through some steps of it as it should."""
        session, drawn = self.session, self.draw
        tokens = [drawn.one_of((1, 1, 4, 17, 64, 70)) for _ in range(1 + drawn.number(3))]
        self.draw = Draw(b"")  # Whose choices are all the plain ones.
        if session not in self.serving.handler._sessions:
            self.open(session)
            self.serving.turn(0.02)
        self.open_push(session)
        for number in tokens:
            self.push(session, number)
            self.serving.turn(0.1)
            self._listen()
            self.cosign(session)
            self.serving.turn(0.1)
        self.draw = drawn

    def open(self, session: bytes | None = None) -> None:
        """A client opens a session."""
        if len(self.serving.streams) >= MAX_STREAMS:
            return
        draw, session = self.draw, session or self.session
        self._checkpoints.pop(session, None)
        self.pushes.pop(session, None)
        stream = self.serving.open_stream(CLIENT if not draw.rarely() else STAGE)
        opened = self._opening(session)
        self.controls[session] = stream
        stream.sends(framed(opened))
        if draw.flag():
            self.serving.turn(0.02)
            if opened.previous:
                self.open_push(session)

    def _opening(self, session: bytes) -> Open:
        draw = self.draw
        fields = {
            "session": session,
            "manifest": MANIFEST if not draw.rarely() else bytes(32),
            "start": draw.number(1) if draw.rarely() else 0,
            "end": NUM_BLOCKS if not draw.rarely() else draw.number(NUM_BLOCKS + 1),
            "batch": 1 + draw.number(2) if draw.flag() else 1,
            "max_length": draw.one_of((200, 64, 1, 0, CACHE_POSITIONS, MAX_LENGTH)) if draw.rarely() else 200,
            "codec": draw.one_of((*CODECS, "junk")) if draw.rarely() else "float32",
            "previous": draw.one_of((CLIENT.peer_id, CLIENT.peer_id, STAGE.peer_id)) if not draw.rarely() else "",
            "next": NEXT.peer_id if draw.flag() else "",
            "next_addresses": ("/ip4/10.0.0.1/tcp/5",),
            "steps": draw.number(3) if draw.rarely() else 0,
            "segment": draw.number(3) if draw.rarely() else 0,
            "sent": draw.number(5) if draw.rarely() else 0,
        }  # fmt: skip
        fields["left_padding"] = (1,) * fields["batch"] if draw.rarely() else ()
        if draw.rarely():
            fields |= {"embed": draw.flag(), "top": draw.number(3)}
        opened = Open(**fields)
        return self._with_offer(opened)

    def _with_offer(self, opened: Open) -> Open:
        draw = self.draw
        self._lane += not draw.rarely()
        offer = Offer(
            session=opened.session,
            consumer=CLIENT.peer_id,
            provider=SERVER.peer_id,
            manifest=opened.manifest,
            start=opened.start,
            end=max(opened.end, opened.start + 1),
            profile=profile_digest("float32", opened.codec),
            padding=padding_digest(opened.left_padding if not draw.rarely() else (3,)),
            lane=self._lane,
            max_tokens=opened.batch * opened.max_length,
            t=int(self.serving.clock.time()) + (draw.number(400) - 200 if draw.rarely() else 0),
        )
        body = offer.to_body() if not draw.rarely() else draw.some_bytes(200)
        signature = CLIENT.sign(Domain.OFFER, body) if not draw.rarely() else draw.blob(64)
        return replace(opened, offer=body, offer_signature=signature)

    def open_push(self, session: bytes | None = None) -> None:
        """The stage before opens its stream."""
        session = session or self.session
        if len(self.serving.streams) >= MAX_STREAMS or (session in self.pushes and not self.draw.rarely()):
            return
        live = self.serving.handler._sessions.get(session)
        named = PEERS.get(live.state.previous) if live is not None else None
        peer = named if named is not None and not self.draw.rarely() else self.draw.one_of((CLIENT, STAGE))
        self.pushes[session] = self.serving.open_stream(peer)
        opened = live.state.opened if live is not None else None
        self._taps[session] = Tap(opened.codec if opened else "float32", opened.segment if opened else 0)

    def push(self, session: bytes | None = None, tokens: int = 0) -> None:
        """The stage before sends the next step, or one near it."""
        draw, session = self.draw, session or self.session
        stream = self.pushes.get(session) if not draw.rarely() else self.controls.get(session)
        if stream is None:
            return
        step = self._step(session, tokens)
        live = self.serving.handler._sessions.get(session)
        if live is not None and not draw.rarely():
            try:
                fits = isinstance(live.state.judge(step), Compute)
            except SessionError:
                fits = False
            if fits and stream.peer_id == STAGE.peer_id:
                self._vouch(session, stream, step)
        stream.sends(framed(step))

    def _vouch(self, session: bytes, stream: MemoryStream, step: Step) -> None:
        for chunk in self._taps[session].add(step, step.segment, step.codec, step.shape, step.payload):
            signature = STAGE.sign(Domain.CHUNK, chunk.voucher_body(session))
            if self.draw.rarely():
                signature = bytes(64)
            stream.sends(framed(Voucher(session, chunk.segment, chunk.index, signature)))

    def _step(self, session: bytes, tokens: int) -> Step:
        draw = self.draw
        live = self.serving.handler._sessions.get(session)
        length, rows, codec, embed, taken = 0, 1, "float32", False, 0
        if live is not None:
            state = live.state
            length, rows, codec, embed, taken = (
                state.length, state.batch, state.opened.codec, state.opened.embed, state.taken,
            )  # fmt: skip
        codec = IDS if embed else codec if codec in CODECS else "float32"
        crop = draw.number(length + 1) if draw.rarely() else None
        selected = None
        if draw.rarely():
            selected = tuple(draw.number(rows - 1) for _ in range(1 + draw.number(3)))
        tokens = tokens or (draw.one_of((1, 1, 4, 17, 64, 70)) if draw.flag() else 1)
        shape = (len(selected) if selected else rows, tokens, 1 if embed else HIDDEN)
        return Step(
            session=session if not draw.rarely() else self.session,
            position=(length if crop is None else crop) if not draw.rarely() else draw.number(80),
            shape=shape,
            codec=codec,
            payload=bytes(payload_bytes(codec, shape)),
            crop=crop,
            rows=selected,
            logits_to_keep=draw.number(2) if draw.rarely() else 1,
            replay=draw.number(2) if draw.rarely() else 0,
            number=draw.number(taken + 1) if draw.rarely() else 0,
            segment=draw.number(3) if draw.rarely() else 0,
        )

    def cosign(self, session: bytes | None = None) -> None:
        """The client signs for a checkpoint, for an older one, or for none."""
        draw, session = self.draw, session or self.session
        stream, bodies = self.controls.get(session), self._checkpoints.get(session)
        if stream is None or not bodies:
            return
        body = bodies[-1] if not draw.rarely() else draw.one_of(bodies)
        made = CheckpointBody.from_body(body)
        signatures = [CLIENT.sign(Kind.RECEIPT, receipt) for receipt in made.receipts]
        if draw.rarely():
            signatures = [draw.blob(64) for _ in range(draw.number(9))]
        number = made.number if not draw.rarely() else 1 + draw.number(40)
        stream.sends(framed(Cosign(session, CosignBody(number, tuple(signatures[:8])).to_body())))

    def replay(self) -> None:
        draw, session = self.draw, self.session
        stream = self.controls.get(session)
        if stream is not None:
            who = draw.one_of((NEXT.peer_id, STAGE.peer_id, "" if draw.rarely() else NEXT.peer_id))
            stream.sends(
                framed(Replay(session, draw.number(9), who, (), draw.number(3), draw.number(2), draw.number(3)))
            )

    def adopt(self) -> None:
        draw, session = self.draw, self.session
        stream = self.controls.get(session)
        if stream is not None:
            who = draw.one_of((STAGE.peer_id, CLIENT.peer_id, "" if draw.rarely() else NEXT.peer_id))
            stream.sends(framed(Adopt(session, draw.number(9), who, draw.number(3), draw.number(9))))
            if draw.flag():
                self.pushes.pop(session, None)

    # What is not.

    def control(self) -> None:
        """The client sends some frame of a session."""
        draw, session = self.draw, self.session
        stream = self.controls.get(session)
        if stream is None:
            return
        frame = draw.one_of((Probe(session, 5), Close(session), Accept(session, "float32"), Cosign(session, b"junk")))
        stream.sends(framed(frame))

    def junk(self) -> None:
        """Somebody sends what is no frame, or one that belongs elsewhere."""
        draw = self.draw
        streams = self.serving.streams
        if not streams or (draw.rarely() and len(streams) < MAX_STREAMS):
            self.serving.open_stream(draw.one_of((CLIENT, STAGE)))
        stream = draw.one_of(streams)
        body = drawn_body(draw) if draw.flag() else draw.some_bytes(50)
        stream.sends(len(body).to_bytes(4, "big") + body if not draw.rarely() else draw.some_bytes(9))

    def leave(self) -> None:
        """A peer closes a stream, or reads no more."""
        draw = self.draw
        streams = [*self.serving.streams, *self.serving.dialled]
        if streams:
            stream = draw.one_of(streams)
            if draw.flag():
                stream.ends()
            else:
                stream.writer.transport.is_stuck = draw.flag()

    # What happens around.

    def turn(self) -> None:
        self.serving.turn(self.draw.one_of((0.02, 0.3, 2.0, 10.0, 31.0)))

    def conditions(self) -> None:
        """The engine, the network and the ledger are slow, or fail."""
        draw, serving = self.draw, self.serving
        serving.engine.takes_s = draw.one_of((0.0, 0.0, 0.05, 3.0))
        serving.engine.fails = draw.rarely()
        serving.dial_takes_s = draw.one_of((0.0, 0.0, 1.0))
        serving.dial_fails = draw.rarely()
        serving.ledger.signed_tokens = draw.one_of((0, 300))
        faults = (SeqsSpent("no numbers left"), LedgerNotWritten("the disk is full"))
        serving.ledger.fault = draw.one_of(faults) if draw.rarely() else None

    def server(self) -> None:
        """The server ends what is idle, or leaves."""
        draw, handler = self.draw, self.serving.handler
        run = self.serving.loop.run_until_complete

        async def leave(within_s: float) -> None:
            handler.ask_to_leave(within_s)

        match draw.number(5):
            case 0:
                run(leave(draw.number(50)))
            case 1:
                run(handler.expire(draw.one_of((0.0, 1e12))))
            case 2:
                handler.close_doors(Refused("draining", "leaving"))
            case 3:
                run(handler.end_all(Refused("draining", "leaving")))
            case _:
                handler.open_doors()

    def _listen(self) -> None:
        """Read what the server has written; what it writes is always a frame."""
        for session, stream in self.controls.items():
            for frame in stream.frames():
                if isinstance(frame, Checkpoint):
                    self._note(session, frame)
                self.accepted += isinstance(frame, Accept)
        for stream in (*self.serving.streams, *self.serving.dialled):
            stream.frames()
        self.signed = len(self.serving.ledger.envelopes)
        self.computed = max(self.computed, *(live.handed_on for live in self.serving.handler._sessions.values()), 0, 0)

    def _note(self, session: bytes, frame: Checkpoint) -> None:
        made = CheckpointBody.from_body(frame.body)
        assert made.receipts
        assert all(Receipt.from_body(body).provider == SERVER.peer_id for body in made.receipts)
        self._checkpoints.setdefault(session, []).append(frame.body)
        del self._checkpoints[session][:-4]


def everybody(data: bytes) -> Peers:
    """Peers do as the bytes say; nothing is raised, and when all have gone nothing is left."""
    draw = Draw(data)
    peers = Peers(draw)
    try:
        for _ in range(60):
            if draw.is_used_up:
                break
            peers.act()
    except BaseException:
        peers.serving.abandon()
        raise
    peers.serving.end()
    return peers


def served(data: bytes) -> None:
    """``everybody``, for a fuzzer."""
    everybody(data)
