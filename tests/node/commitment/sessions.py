"""A session along a chain of stages, without sockets: what a client and stages say to each other, message by message.

Stages admit steps by the real ``StageSession``, logs are the real ``StepLog``. Only the tensors are made up.
"""

import hashlib
from collections import deque
from dataclasses import replace

from node.commitment.chain import ChainCheck
from node.commitment.stage import StageCommitment
from node.serve.session import Compute, StageSession
from node.step_log import StepLog
from node.wire import IDS, Open, Step, payload_bytes

SESSION = b"commitment sim.."
MAX_LENGTH = 700
WIDTHS = {"float32": 2, "bfloat16": 3, "int8": 66}
TOP = 3


def signature_of(peer_id, domain, body):
    """Stand in for Ed25519: nobody here can make another one's."""
    digest = hashlib.sha256(peer_id + bytes([domain]) + body).digest()
    return digest + digest


def verify(peer_id, domain, body, signature):
    return signature == signature_of(peer_id, domain, body)


def noise(num_bytes, *seed):
    return hashlib.shake_256(repr(seed).encode()).digest(num_bytes)


class NumberedLog:
    """A step log that knows the segments of steps, as the frames will."""

    def __init__(self, *args):
        self.log = StepLog(*args)
        self.segments = {}

    def append(self, step, segment):
        self.log.append(step)
        self.segments[self.log.count] = segment

    def replay(self, answered, stages):
        for step in self.log.replay(answered, stages):
            yield step, 0 if step.replay else self.segments[step.number]


class Stage:
    """One stage; adversaries change what it pushes, vouches for or reports."""

    def __init__(self, session, identity, opened, segment=0, steps_left=None):
        self.session = session
        self.identity = identity
        self.is_first, self.is_last = opened.start == 0, not opened.next
        width = session.width
        self.state = StageSession(opened, width, 2**32)
        self.commitment = StageCommitment(
            SESSION, opened.codec, verify, "" if self.is_first else opened.previous, segment, steps_left
        )
        self.inbox = deque()
        self.reports = deque()
        self.handed_on = opened.steps
        rows = opened.batch
        self.log = None if self.is_last else NumberedLog(SESSION, opened.codec, width, rows, MAX_LENGTH, opened.steps)
        self.next = None
        """What takes a message for the next stage, or for the client."""

    @property
    def peer_id(self):
        return self.identity.peer_id

    def work(self):
        """Take one message."""
        match self.inbox.popleft():
            case ("voucher", segment, index, signature):
                self.commitment.vouch(segment, index, signature)
            case ("step", step, segment):
                self.run(step, segment)

    def run(self, step, segment):
        order = self.state.receive(step)
        if not isinstance(order, Compute):
            return
        self.commitment.take(step, segment)
        codec, shape = self.state.output_codec, self.output_shape(step)
        payload = noise(payload_bytes(codec, shape), self.peer_id, step.position, bytes(step.payload))
        self.hand_on(step, segment, codec, shape, payload)

    def output_shape(self, step):
        rows, tokens, _ = step.shape
        if self.state.opened.top:
            return rows, step.logits_to_keep, TOP
        if self.state.opened.sampling:
            return rows, step.logits_to_keep, 1
        return rows, tokens, self.session.width

    def hand_on(self, step, segment, codec, shape, payload):
        for chunk in self.commitment.give(step, segment, codec, shape, payload):
            self.vouch(chunk)
        if self.log is None:
            if not step.replay:
                self.next(("result", codec, shape, payload))
                self.handed_on += 1
            return
        pushed = replace(step, shape=shape, codec=codec, payload=payload, replay=max(0, step.replay - 1))
        if step.replay:
            self.log.log.append_history(shape, payload)
        else:
            self.log.append(pushed, segment)
            self.handed_on += 1
        if not step.replay or pushed.replay:
            self.push(pushed, segment)

    def vouch(self, chunk):
        if self.is_last:
            return
        signature = signature_of(self.identity.peer_id_bytes, 130, chunk.voucher_body(SESSION))
        self.next(("voucher", chunk.segment, chunk.index, signature))

    def push(self, step, segment):
        self.next(("step", step, segment))

    def report(self):
        leaves, root = self.commitment.report()
        self.reports.append((leaves, root, self.handed_on))

    def replay(self, answered, stages, segment):
        self.commitment.relink(segment)
        for step, step_segment in self.log.replay(answered, stages):
            for chunk in self.commitment.resend(step):
                self.vouch(chunk)
            self.push(step, step_segment)

    def seal(self):
        for chunk in self.commitment.seal():
            self.vouch(chunk)


class Session:
    """A client and its stages.

    Args:
        identities: of the first stages, and of those that replace lost ones, as they come.
        num_stages: in the route.
        codec: of hidden states.
        ends: "" for a client with weights, else what a thin one asks for: "top" or "sampling".
        rows: of the first step.
        stage_class: called as ``Stage`` for the stage with each number.
    """

    def __init__(self, identities, num_stages, codec="float32", ends="", rows=1, stage_class=lambda number: Stage):
        self.identities = iter(identities)
        self.codec, self.ends, self.width = codec, ends, WIDTHS[codec]
        self.rows, self.rows_answered, self.length = rows, rows, 0
        self.answered = 0
        self.waiting = deque()
        self.inbox = deque()
        self.log = NumberedLog(SESSION, IDS if ends else codec, 1 if ends else self.width, rows, MAX_LENGTH)
        peers = [next(self.identities) for _ in range(num_stages)]
        self.peers = [identity.peer_id for identity in peers]
        self.check = ChainCheck(SESSION, codec, self.peers, verify)
        self.stages = [
            stage_class(number)(self, identity, self.opened(number, number + 1, self.peers, number))
            for number, identity in enumerate(peers)
        ]
        self.link()
        self.num_calls = 0

    def opened(self, start, end, peers, place, steps=0, rows=None):
        is_first, is_last = place == 0, place == len(peers) - 1
        return Open(
            SESSION, bytes(32), start, end, rows or self.rows, (), MAX_LENGTH, self.codec,
            "client" if is_first else peers[place - 1],
            "" if is_last else peers[place + 1],
            (),
            embed=is_first and bool(self.ends),
            top=TOP if is_last and self.ends == "top" else 0,
            sampling=(0.0, 0, 1.0, 1) if is_last and self.ends == "sampling" else None,
            steps=steps,
        )  # fmt: skip

    def link(self):
        for stage, behind in zip(self.stages, self.stages[1:], strict=False):
            stage.next = behind.inbox.append
        self.stages[-1].next = self.take_result

    def take_result(self, message):
        """Take what the last stage sends; a voucher is nothing to a client, which knows what it got."""
        if message[0] == "result":
            self.inbox.append(message)

    # The client.

    def call(self, step_tokens, crop=None, rows=None, keep=1):
        """Send steps of so many positions; the first one changes what lies before it."""
        assert not self.waiting
        if crop is not None:
            self.length = crop
        if rows is not None:
            self.rows = len(rows)
        self.num_calls += 1
        codec, width = (IDS, 1) if self.ends else (self.codec, self.width)
        for number, tokens in enumerate(step_tokens):
            shape = (self.rows, tokens, width)
            payload = noise(payload_bytes(codec, shape), self.num_calls, number)
            first = number == 0
            step = Step(
                SESSION, self.length, shape, codec, payload,
                crop=crop if first else None, rows=rows if first else None, logits_to_keep=min(keep, tokens),
            )  # fmt: skip
            self.length += tokens
            self.send(step, self.check.segment)

    def send(self, step, segment):
        self.waiting.append((step, segment))
        self.check.sent(step, segment)
        self.log.append(step, segment)
        self.stages[0].inbox.append(("step", step, segment))

    def receive(self):
        _, codec, shape, payload = self.inbox.popleft()
        step, segment = self.waiting.popleft()
        self.answered += 1
        self.rows_answered = step.shape[0]
        self.check.answered(step, segment, codec, shape, payload)

    def replace(self, first, last, num_new):
        """Put new stages in the place of lost ones."""
        self.let_catch_up()
        before = self.stages[first - 1] if first else None
        behind = self.stages[last + 1] if last + 1 < len(self.stages) else None
        new = [next(self.identities) for _ in range(num_new)]
        self.peers[first : last + 1] = [identity.peer_id for identity in new]
        segment = self.check.replaced(first, last, self.peers[first : first + num_new])
        stages = []
        for place, identity in enumerate(new, start=first):
            opened = self.opened(place, place + 1, self.peers, place, self.answered, self.rows_answered)
            stages.append(Stage(self, identity, opened, segment, self.check.num_sent - self.answered))
        self.stages[first : last + 1] = stages
        if behind is not None:
            behind.inbox.clear()
            behind.state.previous = stages[-1].peer_id
            behind.commitment.adopt(stages[-1].peer_id, segment, self.check.num_sent - behind.state.taken)
        else:
            self.inbox.clear()
        self.link()
        if before is not None:
            before.replay(self.answered, num_new, segment)
            return
        for step, step_segment in self.log.replay(self.answered, num_new):
            self.check.resent(step)
            stages[0].inbox.append(("step", step, step_segment))

    def let_catch_up(self):
        """Let stages run what history they were given; see ``_catch_up`` in ``chain``."""
        while any(message[0] == "step" and message[1].replay for stage in self.stages for message in stage.inbox):
            for stage in self.stages:
                if stage.inbox:
                    stage.work()

    # What happens by itself.

    def deliver(self, number):
        """Let the client see a stage's oldest report."""
        leaves, root, steps = self.stages[number].reports.popleft()
        assert self.check.check(number, leaves, steps) == root

    def settle(self):
        """Let everything that is on the way arrive."""
        while self.inbox or any(stage.inbox for stage in self.stages):
            for stage in self.stages:
                while stage.inbox:
                    stage.work()
            while self.inbox:
                self.receive()

    def report_all(self):
        for number, stage in enumerate(self.stages):
            stage.report()
            while stage.reports:
                self.deliver(number)

    def end(self):
        """End the session in good order; every chunk is committed to and equal on both sides of every edge."""
        self.settle()
        self.check.seal()
        for stage in self.stages:
            stage.seal()
        self.settle()
        while any(stage.commitment.num_unreported or stage.reports for stage in self.stages):
            self.report_all()
