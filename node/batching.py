"""Which waiting steps share the next forward pass: continuous batching with chunked prefills, as a pure function.

No tensors, no clock, no thread. Steps wait in order of arrival; before every forward the engine asks for a plan.

- Short steps (decoding, or the few tokens of a draft) all ride together, as many as ``max_rows`` tokens allow. Higher
  priority goes first; among equals turns go round by client, then by who was served longest ago: a client's second
  step waits for all first ones of its priority.
- A long step (a prefill) rides along in chunks, so that the others wait for a chunk and not for a prompt. Chunks are
  short while somebody decodes and long when nobody does, and no two of a group follow each other while short steps of
  it wait. Long steps take turns; ends of others fill what is left.
- Steps of different groups (parts of the span) cannot share a forward; the group of whoever's turn it is goes first.

Drawn for forwards of 3 short tokens, with chunks of 64 while somebody decodes and of 128 otherwise. P and Q are
prefills of 200 and 100 positions; a to c decode, c in two sessions, and b has a draft of 3 tokens for its third step.
Numbers are positions run, a dot is a forward waited for.

    forward     0    1    2    3    4    5    6    7
    P         128    .    .    .   64    .    8
    Q           .    .   64    .    .    .   36
    a                1    1    1    .    1    1
    b                1    1    .    3    1
    c                     1    1    .    1    1
    c'                    .    1    .    .    1    1

``tests/node/test_batching.py`` makes this drawing of ``plan_batch`` and compares.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one forward pass, in tokens (rows times positions)."""

    max_rows: int = 64
    """Tokens of short steps together."""
    chunk_tokens: int = 32
    """A chunk of a long step while others decode: what a decoding client waits for at worst."""
    full_chunk_tokens: int = 512
    """A chunk of a long step when nobody decodes."""
    short_positions: int = 8
    """A step of at most so many positions, and at most ``max_rows`` tokens, is short."""
    linger_share: float = 2.0
    """Short steps wait for others that are due, at most for this multiple of what a forward takes."""
    max_linger_s: float = 0.02
    """And never longer than this."""
    company: int = 8
    """So many sessions are company enough to stop waiting, or half of those that decode if that is more."""

    def is_short(self, rows: int, positions: int) -> bool:
        """Say whether a step of so many rows and positions rides along whole."""
        return positions <= self.short_positions and rows * positions <= self.max_rows


@dataclass(frozen=True, slots=True)
class Waiting:
    """A step that waits for its next share of a forward pass."""

    group: Hashable
    """Steps of one group can share a forward."""
    client: str
    """Who asked for it."""
    rows: int
    """Rows of its session."""
    positions: int
    """Positions per row that are left to run."""
    since: int
    """Number of the forward after which it began to wait; lower waits longer."""
    priority: int = 0
    """Higher goes first."""
    client_since: int = 0
    """Number of the last forward in which its client had a share, while it has had steps waiting; 0: none."""

    @property
    def num_tokens(self) -> int:
        """Rows times positions left."""
        return self.rows * self.positions


@dataclass(frozen=True, slots=True)
class Share:
    """What one step gets of the next forward."""

    index: int
    """Place of the step among those that wait."""
    positions: int
    """Positions per row to run."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When a session takes its short steps."""

    last_s: float
    """When the last one arrived."""
    period_s: float
    """Time between two of them, averaged over the last few; 0 until there have been two."""

    def next(self, now_s: float) -> Rhythm:
        """Return the rhythm after a step that arrives at ``now_s``."""
        period_s = now_s - self.last_s
        if period_s > _PAUSE_S:
            return Rhythm(now_s, 0.0)
        if self.period_s:
            period_s = self.period_s + (period_s - self.period_s) * _AVERAGE_WEIGHT
        return Rhythm(now_s, period_s)

    def is_due(self, now_s: float, within_s: float) -> bool:
        """Say whether the next step should arrive within ``within_s``, or should just have arrived."""
        early, late = self.last_s + 0.75 * self.period_s, self.last_s + 1.5 * self.period_s
        return self.period_s > 0 and early <= now_s + within_s and now_s <= late

    def is_over(self, now_s: float) -> bool:
        """Say whether the session has paused, or ended."""
        return now_s > self.last_s + max(_PAUSE_S, 2 * self.period_s)


_FORWARDS_PER_LEVEL = 4
"""A client that has waited for so many forwards without a share gains one level of priority."""
_PAUSE_S = 1.0
"""A longer time between two steps is a pause and no period."""
_AVERAGE_WEIGHT = 0.3
"""Weight of the latest period in the average."""


def linger_s(num_waiting: int, num_decoding: int, forward_s: float, limits: Limits) -> float:
    """Return how long short steps wait, from the first one's arrival, for others that are due.

    A forward of eight rows costs little more than one of one row, so sessions that step at about the same time gain
    by keeping together, here and at the stages that follow. Half of them together and not all, so that the other
    half is at another stage meanwhile. A session that steps alone never waits.

    Args:
        num_waiting: sessions whose short steps wait.
        num_decoding: sessions that take short steps, the waiting ones included.
        forward_s: what a forward of short steps has taken lately.
        limits: bounds of the forward.
    """
    if num_waiting >= max(limits.company, -(-num_decoding // 2)):
        return 0.0
    return min(limits.max_linger_s, limits.linger_share * forward_s)


def plan_batch(
    waiting: Sequence[Waiting], limits: Limits, *, is_decoding: bool, chunked: Collection[Hashable] = ()
) -> tuple[Share, ...]:
    """Return the shares of the next forward pass; empty only when nothing waits.

    Args:
        waiting: the steps that wait, in order of arrival.
        limits: bounds of the forward.
        is_decoding: whether somebody has taken short steps lately, who may be back at any moment.
        chunked: groups whose own last forward ran a chunk of a long step; their short ones that came meanwhile go
            without another.
    """
    if not waiting:
        return ()
    if len(waiting) == 1 and limits.is_short(waiting[0].rows, waiting[0].positions):
        return (Share(0, waiting[0].positions),)
    turns = _turns(waiting)
    members = [index for index in turns if waiting[index].group == waiting[turns[0]].group]
    short = [index for index in members if limits.is_short(waiting[index].rows, waiting[index].positions)]
    long = [index for index in members if index not in set(short)]
    shares = _short_shares(waiting, short, limits.max_rows)
    if not (shares and waiting[turns[0]].group in chunked):
        chunk = limits.chunk_tokens if is_decoding or short else limits.full_chunk_tokens
        shares += _long_shares(waiting, long, chunk)
    return tuple(shares)


def _long_shares(waiting: Sequence[Waiting], turns: Sequence[int], chunk_tokens: int) -> list[Share]:
    """Give the first long step a chunk, and others what is left of it if that ends them.

    Cut anywhere else, they would lose the places at which common beginnings are found.
    """
    shares: list[Share] = []
    left = chunk_tokens
    for index in turns:
        step = waiting[index]
        if not shares:
            shares.append(Share(index, min(step.positions, max(1, chunk_tokens // step.rows))))
        elif step.num_tokens <= left:
            shares.append(Share(index, step.positions))
        else:
            continue
        left -= step.rows * shares[-1].positions
    return shares


def _short_shares(waiting: Sequence[Waiting], turns: Iterable[int], max_rows: int) -> list[Share]:
    """Give whole short steps their turn until ``max_rows`` is reached; the first fits always."""
    shares: list[Share] = []
    taken = 0
    for index in turns:
        step = waiting[index]
        if shares and taken + step.num_tokens > max_rows:
            continue
        shares.append(Share(index, step.positions))
        taken += step.num_tokens
    return shares


def _turns(waiting: Sequence[Waiting]) -> list[int]:
    """Order the steps that wait: higher priorities first; of equal ones every client's first, then every second.

    Within a turn the client that was served longest ago goes first. The first step of a client that has had no share
    for a while gains on priority, so that nobody waits for ever.
    """
    seen: dict[str, int] = {}
    seen_since: dict[str, int] = {}
    latest = max(max(step.since, step.client_since) for step in waiting)
    keys = []
    for index in sorted(range(len(waiting)), key=lambda index: (waiting[index].since, index)):
        step = waiting[index]
        turn = seen[step.client] = seen.get(step.client, -1) + 1
        seen_since.setdefault(step.client, step.since)
        gained = (latest - max(step.client_since, seen_since[step.client])) // _FORWARDS_PER_LEVEL
        level = step.priority + (0 if turn else gained)
        keys.append((-level, turn, step.client_since, step.since, index))
    return [key[-1] for key in sorted(keys)]
