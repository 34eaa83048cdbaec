"""The schedule is the one drawn in ``node.batching``; every plan keeps its bounds, and nobody waits for ever."""

import inspect
import itertools
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import batching
from node.batching import Limits, Rhythm, Share, Waiting, linger_s, plan_batch

LIMITS = Limits(chunk_tokens=64)


@dataclass
class Session:
    """A session of the simulation: it sends each step when the one before has ended."""

    name: str
    first: int
    """Forward before which its first step comes."""
    steps: list[int]
    """Positions of each step."""
    client: str = ""
    rows: int = 1
    group: str = "all"
    priority: int = 0
    since: int = 0


def simulate(sessions, limits):
    """Return what every forward ran, ``{name: positions}``, and who waited for it, until all steps have ended."""
    sessions = [replace(session, since=session.first, steps=list(session.steps)) for session in sessions]
    forwards, decoded, chunked, served = [], False, set(), {}
    while any(session.steps for session in sessions):
        now = len(forwards)
        assert now < 1000, "the schedule does not end"
        present = [session for session in sessions if session.steps and session.first <= now]
        served = {client: at for client, at in served.items() if client in {s.client or s.name for s in present}}
        waiting = [
            Waiting(
                s.group, s.client or s.name, s.rows, s.steps[0], s.since, s.priority, served.get(s.client or s.name, 0)
            )
            for s in present
        ]
        plan = plan_batch(waiting, limits, is_decoding=decoded, chunked=chunked)
        chunked -= {waiting[share.index].group for share in plan}
        chunked.update(waiting[share.index].group for share in plan if not is_short(waiting[share.index], limits))
        decoded = any(waiting[share.index].positions <= limits.short_positions for share in plan)
        forwards.append(({present[share.index].name: share.positions for share in plan}, {s.name for s in present}))
        for share in plan:
            session = present[share.index]
            session.since = served[session.client or session.name] = now + 1
            session.steps[0] -= share.positions
            assert session.steps[0] >= 0
            if not session.steps[0]:
                session.steps.pop(0)
    return forwards


def draw(sessions, limits):
    """Draw the schedule: a line per session, a column per forward, positions run, a dot where it waits in vain."""
    forwards = simulate(sessions, limits)

    def line(name, cells):
        return f"    {name:<8}" + "".join(f"{cell:>5}" for cell in cells).rstrip()

    lines = [line("forward", range(len(forwards)))]
    for session in sessions:
        name = session.name
        cells = [run.get(name, "." if name in waits else "") for run, waits in forwards]
        lines.append(line(name, cells))
    return "\n".join(lines)


def test_the_schedule_is_the_one_that_is_drawn():
    sessions = [
        Session("P", 0, [200]),
        Session("Q", 0, [100]),
        Session("a", 1, [1] * 5),
        Session("b", 1, [1, 1, 3, 1]),
        Session("c", 2, [1] * 4),
        Session("c'", 2, [1] * 3, client="c"),
    ]
    drawing = draw(sessions, Limits(max_rows=3, chunk_tokens=64, full_chunk_tokens=128, short_positions=3))
    assert drawing in inspect.getdoc(batching), f"\n{drawing}"


def test_nothing_is_planned_where_nothing_waits():
    assert plan_batch([], LIMITS, is_decoding=False) == ()


def test_short_steps_of_all_clients_ride_together_behind_the_long_step_nobody_decodes_for():
    waiting = [Waiting("all", name, 1, 1, 0) for name in "abc"] + [Waiting("all", "d", 1, 500, 0)]
    assert plan_batch(waiting, LIMITS, is_decoding=False) == (*(Share(n, 1) for n in range(3)), Share(3, 64))
    assert plan_batch(waiting, LIMITS, is_decoding=True, chunked={"all"}) == tuple(Share(n, 1) for n in range(3))
    assert plan_batch(waiting, LIMITS, is_decoding=True, chunked={"half"})[3:] == (Share(3, 64),)
    assert plan_batch(waiting[3:], LIMITS, is_decoding=True, chunked={"all"}) == (Share(0, 64),)
    assert plan_batch(waiting[3:], LIMITS, is_decoding=False) == (Share(0, 500),)


def test_a_chunk_is_counted_in_tokens_and_has_one_position_at_least():
    def positions(rows):
        return plan_batch([Waiting("all", "a", rows, 100, 0)], LIMITS, is_decoding=True)[0].positions

    assert [positions(rows) for rows in (1, 2, 3, 64, 65, 1000)] == [64, 32, 21, 1, 1, 1]


def test_turns_go_round_by_client_and_priority_and_who_waits_longest():
    waiting = [
        Waiting("all", "greedy", 1, 1, 0),
        Waiting("all", "greedy", 1, 1, 0),
        Waiting("all", "late", 1, 1, 5),
        Waiting("all", "early", 1, 1, 3),
        Waiting("all", "dear", 1, 1, 5, priority=2),
    ]
    order = [
        {share.index for share in plan_batch(waiting, Limits(max_rows=size), is_decoding=True)} for size in range(1, 6)
    ]
    assert order == [{4}, {4, 0}, {4, 0, 3}, {4, 0, 3, 2}, {4, 0, 3, 2, 1}]


def is_short(step, limits):
    return step.positions <= limits.short_positions and step.rows * step.positions <= limits.max_rows


def test_parts_of_the_span_that_one_client_chooses_do_not_multiply_its_turns():
    """A greedy client has 20 sessions over 20 parts of the span, an honest one a single session."""
    sessions = [Session(f"greedy{part}", 0, [1] * 30, client="greedy", group=f"part{part}") for part in range(20)]
    forwards = simulate([*sessions, Session("honest", 1, [1] * 20)], LIMITS)
    served = [index for index, (run, _) in enumerate(forwards) if "honest" in run]
    assert max(later - earlier for earlier, later in itertools.pairwise(served)) <= 3


def test_a_step_of_many_rows_is_not_short_and_comes_in_chunks():
    waiting = [Waiting("all", "wide", 1024, 8, 0), Waiting("all", "honest", 1, 1, 0)]
    assert plan_batch(waiting, LIMITS, is_decoding=True) == (Share(1, 1), Share(0, 1))


@st.composite
def waiting_steps(draw):
    num_clients = draw(st.integers(1, 5))
    step = st.builds(
        Waiting,
        st.sampled_from(["all", "half"]),
        st.integers(0, num_clients).map(str),
        st.integers(1, 5) | st.integers(60, 70),
        st.integers(1, 20) | st.integers(500, 600),
        st.integers(0, 4),
        st.integers(0, 2),
    )
    return draw(st.lists(step, min_size=1, max_size=30))


limits_drawn = st.builds(Limits, st.integers(1, 40), st.integers(1, 80), st.integers(80, 200), st.integers(1, 10))


@given(waiting_steps(), limits_drawn, st.booleans(), st.sets(st.sampled_from(["all", "half"])))
def test_every_plan_keeps_its_bounds(waiting, limits, is_decoding, chunked):
    plan = plan_batch(waiting, limits, is_decoding=is_decoding, chunked=chunked)
    assert plan
    assert len({share.index for share in plan}) == len(plan)
    assert len({waiting[share.index].group for share in plan}) == 1
    firsts = {}
    for step in sorted(waiting, key=lambda step: step.since):
        firsts.setdefault(step.client, step)
    assert waiting[plan[0].index].group in {step.group for step in firsts.values()}, "it is some client's first turn"
    assert all(1 <= share.positions <= waiting[share.index].positions for share in plan)
    short = [share for share in plan if is_short(waiting[share.index], limits)]
    long = [share for share in plan if not is_short(waiting[share.index], limits)]
    assert all(share.positions == waiting[share.index].positions for share in short), "short steps run whole"
    assert len(short) == 1 or sum(waiting[share.index].num_tokens for share in short) <= limits.max_rows
    chunk = limits.chunk_tokens if is_decoding or short else limits.full_chunk_tokens
    long_tokens = sum(share.positions * waiting[share.index].rows for share in long)
    assert not (short and long and waiting[plan[0].index].group in chunked)
    assert long_tokens <= chunk or (len(long) == 1 and long[0].positions == 1)
    assert all(share.positions == waiting[share.index].positions for share in long[1:]), "only the first is cut"


def test_the_ends_of_other_long_steps_fill_what_a_chunk_leaves():
    waiting = [Waiting("all", name, 1, positions, 0) for name, positions in zip("abcd", (20, 500, 30, 15), strict=True)]
    assert plan_batch(waiting, LIMITS, is_decoding=True) == (Share(0, 20), Share(2, 30))


def test_all_steps_of_a_higher_priority_go_before_a_crowd_of_lower_ones():
    """Else whoever splits into many clients would be served between two steps of one that has earned more."""
    crowd = [Waiting("all", f"sybil{number}", 1, 1, 1) for number in range(20)]
    waiting = [*crowd, *(Waiting("all", "dear", 1, 1, 1, priority=7) for _ in range(3))]
    plan = plan_batch(waiting, Limits(max_rows=4), is_decoding=True)
    assert {share.index for share in plan} == {20, 21, 22, 0}


def test_a_low_priority_does_not_make_a_step_wait_for_ever():
    humble = Waiting("all", "humble", 1, 1, 0)
    for now in range(100):
        dear = [Waiting("all", f"dear{number}", 1, 1, now, priority=3) for number in range(4)]
        if Share(0, 1) in plan_batch([humble, *dear], Limits(max_rows=4), is_decoding=True):
            break
    assert 4 <= now < 20


@given(waiting_steps(), limits_drawn, st.booleans())
def test_no_step_is_left_out_while_a_later_one_of_its_kind_and_client_goes(waiting, limits, is_decoding):
    chosen = {share.index for share in plan_batch(waiting, limits, is_decoding=is_decoding)}
    for index in chosen:
        mine = waiting[index]
        for other_index, other in enumerate(waiting):
            same = other.group == mine.group and (other.client, other.priority) == (mine.client, mine.priority)
            both_short = is_short(mine, limits) and is_short(other, limits)
            if same and both_short and other.since < mine.since and other.num_tokens <= mine.num_tokens:
                assert other_index in chosen


@st.composite
def sessions_drawn(draw):
    num = draw(st.integers(1, 8))
    return [
        Session(
            f"s{number}",
            draw(st.integers(0, 6)),
            draw(st.lists(st.integers(1, 3) | st.integers(9, 90), min_size=1, max_size=4)),
            client=draw(st.sampled_from("xyz")),
            rows=draw(st.integers(1, 3)),
            group=draw(st.sampled_from(["all", "half"])),
            priority=draw(st.integers(0, 1)),
        )
        for number in range(num)
    ]


@settings(max_examples=40)
@given(sessions_drawn(), limits_drawn)
def test_every_step_ends_and_is_run_whole_once(sessions, limits):
    done = dict.fromkeys((session.name for session in sessions), 0)
    for run, waits in simulate(sessions, limits):
        assert bool(run) == bool(waits)
        for name, positions in run.items():
            done[name] += positions
    assert done == {session.name: sum(session.steps) for session in sessions}


@pytest.mark.parametrize("num_greedy", [1, 10, 60])
def test_a_client_with_many_sessions_does_not_slow_one_with_a_single_session(num_greedy):
    greedy = [Session(f"greedy{number}", 0, [1] * 5, client="greedy") for number in range(num_greedy)]
    forwards = simulate([*greedy, Session("modest", 1, [1] * 5)], Limits(max_rows=2))
    assert [number for number, (run, _) in enumerate(forwards) if "modest" in run] == [1, 2, 3, 4, 5]


def longest_waits(forwards):
    """Return for each name the most forwards that it waited in a row."""
    longest, current = {}, {}
    for run, waits in forwards:
        for name in waits:
            current[name] = 0 if name in run else current.get(name, 0) + 1
            longest[name] = max(longest.get(name, 0), current[name])
    return longest


def test_all_sessions_of_all_clients_wait_in_turn():
    """Four clients decode in 1, 2, 3 and 10 sessions; three tokens fit into a forward."""
    counts = {"a": 1, "b": 2, "c": 3, "d": 10}
    sessions = [
        Session(f"{client}{number}", 0, [1] * 20, client=client)
        for client, count in counts.items()
        for number in range(count)
    ]
    waits = longest_waits(simulate(sessions, Limits(max_rows=3)))
    # A client gets a step into three forwards of four; its sessions share them in turn.
    for session in sessions:
        assert waits[session.name] <= 2 * counts[session.client]


def test_long_steps_take_turns_among_themselves_and_with_short_ones():
    sessions = [Session(name, 0, [640]) for name in "PQR"] + [Session(name, 0, [1] * 40) for name in "ab"]
    waits = longest_waits(simulate(sessions, LIMITS))
    assert waits == {"P": 5, "Q": 5, "R": 5, "a": 0, "b": 0}


@pytest.mark.parametrize("owners", list(itertools.product("xy", repeat=4)), ids="".join)
def test_long_steps_of_several_groups_starve_under_no_ownership(owners):
    long_a, long_b, short_a, short_b = owners
    sessions = [
        Session("LA", 0, [640], client=long_a, group="A"),
        Session("LB", 0, [640], client=long_b, group="B"),
        Session("a", 0, [1] * 200, client=short_a, group="A"),
        Session("b", 0, [1] * 200, client=short_b, group="B"),
    ]
    waits = longest_waits(simulate(sessions, LIMITS))
    assert all(waits[name] <= 8 for name in waits), waits


def test_groups_take_turns():
    sessions = [Session(f"a{number}", 0, [1] * 20) for number in range(5)] + [
        Session(f"b{number}", 0, [1] * 20, group="half") for number in range(5)
    ]
    waits = longest_waits(simulate(sessions, LIMITS))
    assert set(waits.values()) == {1}


def steady(period_s, num_steps=10):
    rhythm = Rhythm(0.0, 0.0)
    for number in range(1, num_steps):
        rhythm = rhythm.next(number * period_s)
    return rhythm, (num_steps - 1) * period_s


@pytest.mark.parametrize("period_s", [0.002, 0.05, 0.9])
def test_a_session_that_steps_steadily_is_due_one_period_after_its_last_step(period_s):
    rhythm, last_s = steady(period_s)
    assert rhythm.period_s == pytest.approx(period_s)
    within_s = 0.1 * period_s
    assert rhythm.is_due(last_s + 0.95 * period_s, within_s)
    assert rhythm.is_due(last_s + 1.2 * period_s, within_s), "a little late"
    assert not rhythm.is_due(last_s + 0.1 * period_s, within_s)
    assert not rhythm.is_due(last_s + 2 * period_s, within_s), "nobody is waited for who does not come"
    assert not rhythm.is_over(last_s + 1.5 * period_s)


def test_a_session_that_pauses_is_over_and_begins_a_new_rhythm():
    rhythm, last_s = steady(0.05)
    assert rhythm.is_over(last_s + 1.1)
    again = rhythm.next(last_s + 30.0)
    assert again == Rhythm(last_s + 30.0, 0.0)
    assert not again.is_due(last_s + 30.05, 1.0), "after one step nothing is known yet"


@given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=30))
def test_a_rhythm_lies_between_the_shortest_and_the_longest_time_between_two_steps(gaps_s):
    rhythm, now_s = Rhythm(0.0, 0.0), 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        rhythm = rhythm.next(now_s)
    assert rhythm.last_s == now_s
    assert min(gaps_s) - 1e-9 <= rhythm.period_s <= max(gaps_s) + 1e-9


def test_short_steps_linger_for_a_share_of_a_forward_and_never_long():
    limits = Limits(linger_share=0.5, max_linger_s=0.003)
    waits_s = [linger_s(1, 2, forward_s, limits) for forward_s in (0.0, 0.004, 10.0)]
    assert waits_s == pytest.approx([0.0, 0.002, 0.003])


def test_half_of_the_sessions_that_decode_are_company_enough():
    def waits(num_waiting, num_decoding):
        return linger_s(num_waiting, num_decoding, 0.004, LIMITS) > 0

    assert [waits(7, decoding) for decoding in (8, 16, 32)] == [True] * 3
    assert [waits(8, decoding) for decoding in (8, 16, 18, 32)] == [False, False, True, True]
    assert [waits(num, 32) for num in (15, 16, 17)] == [True, False, False]
