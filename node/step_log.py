"""What one side has handed on in a session, so that all of it can be handed to another stage: bytes by position.

A stage keeps its outputs, a client what it has sent to the first stage. When the stage behind is lost, the log gives
what a new one needs: the history in long pieces, marked as such, and then the steps that the client still waits for, as
they were sent. Pure bookkeeping, without I/O and tensors.

A step that selects rows is kept beside the history until a later one shows that it was answered: until then the
history may be wanted as it was before. One that crops is not, because what is cropped is not wanted by anybody.

    history   | 0 .................... 40 |                      answered: steps 1 to 9
    waiting                               | 10 | 11 |            sent again as steps 10 and 11
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from node.wire import Payload, Step, max_step_tokens, payload_parts

_PIECE_TOKENS = 256
"""Positions of one piece of a history: the stage behind works on one while the next is on its way."""
_FIRST_POSITIONS = 32
"""Positions that there is room for at first."""
_MAX_WAITING_STEPS = 4096
"""Steps that a client may wait for at once and that are known one by one; a long prefill is a few hundred."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A step whose payload is part of the history already."""

    number: int
    position: int
    tokens: int
    crop: int | None
    logits_to_keep: int
    segment: int


class StepLog:
    """The payloads handed on in one session.

    Args:
        session: its id.
        codec: how its payloads travel.
        width: elements of one position's payload.
        rows: rows of its first step.
        capacity: positions that it may reach.
        count: steps that were answered before the log began.
    """

    def __init__(self, session: bytes, codec: str, width: int, rows: int, capacity: int, count: int = 0) -> None:
        self.length = 0
        """Positions in the history, without steps kept beside it."""
        self.count = count
        """Steps so far; the last one has this number."""
        self._session = session
        self._codec = codec
        self._width = width
        self._capacity = capacity
        self._parts = [_empty(rows, min(capacity, _FIRST_POSITIONS), size) for size in payload_parts(codec, width)]
        self._marks: deque[_Mark] = deque(maxlen=_MAX_WAITING_STEPS)
        self._beside: list[Step] = []

    @property
    def position_bytes(self) -> int:
        """Bytes of one position of all rows."""
        return sum(len(part) * part.shape[2] for part in self._parts)

    @property
    def num_bytes(self) -> int:
        """Memory that the history takes, with the room that it has for more."""
        return sum(part.nbytes for part in self._parts)

    @property
    def has_parts(self) -> bool:
        """Whether positions that stand side by side are not so in a payload: several rows, or scales beside values."""
        return len(self._parts) > 1 or len(self._parts[0]) > 1

    @property
    def rows(self) -> int:
        """Rows of the history."""
        return len(self._parts[0])

    @property
    def width(self) -> int:
        """Elements of one position's payload."""
        return self._width

    @property
    def codec(self) -> str:
        """How its payloads travel."""
        return self._codec

    def seal(self) -> None:
        """Note that no stage will ask for anything again: what is kept beside the history, and room, are let go of."""
        self._marks.clear()
        self._beside.clear()
        if 2 * self.length < self._parts[0].shape[1]:
            self._parts = [part[:, : self.length].copy() for part in self._parts]

    def append(self, step: Step) -> None:
        """Add a step's payload, in the log's codec; its rows and crop are those before it."""
        self.count += 1
        if step.crop is not None or step.rows is not None:
            self._fold(self.count)  # It is the first of a call, so everything before it has been answered.
            self._marks.clear()
        if step.crop is not None:
            self.length = min(self.length, step.crop)
        if step.rows is not None or self._beside:
            self._beside.append(replace(step, payload=bytes(step.payload), number=self.count))
        else:
            self._marks.append(
                _Mark(self.count, step.position, step.shape[1], step.crop, step.logits_to_keep, step.segment)
            )
            self._write(step.shape, step.payload)

    def append_history(self, shape: tuple[int, ...], payload: Payload) -> None:
        """Add a piece of a history that was handed over: steps that were answered."""
        self._write(shape, payload)

    def replay(self, answered: int, stages: int) -> Iterator[Step]:
        """Yield what a new stage needs: pieces of the history, then the steps after number ``answered`` as they were.

        Args:
            answered: steps that the client has the results of.
            stages: how many stages, one behind the other, need the history.
        """
        self._fold(answered)
        waiting = [mark for mark in self._marks if mark.number > answered]
        yield from self._history(waiting[0].position if waiting else self.length, stages, answered)
        for mark in waiting:
            again = self._piece(mark.position, mark.tokens)
            yield replace(
                again,
                crop=mark.crop,
                number=mark.number,
                logits_to_keep=mark.logits_to_keep,
                segment=mark.segment,
            )
        yield from self._beside

    def _history(self, length: int, stages: int, answered: int) -> Iterator[Step]:
        """Yield the history; the last piece has the number of the last step in it, so that its end is seen."""
        at_once = min(_PIECE_TOKENS, max_step_tokens(len(self._parts[0])))
        for position in range(0, length, at_once):
            tokens = min(at_once, length - position)
            number = answered if position + tokens == length else 0
            yield replace(self._piece(position, tokens), replay=stages, number=number)

    def _piece(self, position: int, tokens: int) -> Step:
        return Step(self._session, position, *self.piece(position, tokens))

    def piece(self, position: int, tokens: int) -> tuple[tuple[int, ...], str, bytes]:
        """Return shape, codec and payload of positions of the history, which are all there."""
        assert 0 <= position < position + tokens <= self.length
        shape = (len(self._parts[0]), tokens, self._width)
        return shape, self._codec, b"".join(part[:, position : position + tokens].tobytes() for part in self._parts)

    def _fold(self, answered: int) -> None:
        """Make the steps kept beside the history part of it, up to the number ``answered``."""
        while self._beside and self._beside[0].number <= answered:
            step = self._beside.pop(0)
            if step.rows is not None:
                self._select(step.rows)
            self._write(step.shape, step.payload)

    def _select(self, rows: Sequence[int]) -> None:
        for index, part in enumerate(self._parts):
            kept = part if len(part) == len(rows) else _empty(len(rows), *part.shape[1:])
            kept[:, : self.length] = part[list(rows), : self.length]
            self._parts[index] = kept

    def _write(self, shape: tuple[int, ...], payload: Payload) -> None:
        rows, tokens, _ = shape
        self._grow(self.length + tokens)
        data = np.frombuffer(payload, dtype=np.uint8)
        first = 0
        for part in self._parts:
            size = rows * tokens * part.shape[2]
            part[:, self.length : self.length + tokens] = data[first : first + size].reshape(rows, tokens, -1)
            first += size
        self.length += tokens

    def _grow(self, length: int) -> None:
        """Make room for ``length`` positions, and for as many again, as far as there may be so many."""
        if length <= self._parts[0].shape[1]:
            return
        for index, part in enumerate(self._parts):
            grown = _empty(len(part), min(self._capacity, 2 * length), part.shape[2])
            grown[:, : self.length] = part[:, : self.length]
            self._parts[index] = grown


def _empty(rows: int, capacity: int, size: int) -> npt.NDArray[np.uint8]:
    return np.empty((rows, capacity, size), dtype=np.uint8)
