"""What a donor is told are the handler's own numbers and those of the statistics, with their units."""

import io
import json
import time
from types import SimpleNamespace

from node.engine import BatchReport
from node.run.events import Reporter
from node.run.load import tell_load
from node.serve.handler import Counters
from node.serve.slots import Slots
from node.serve.statistics import Statistics

MIB = 2**20


def told(handler, statistics):
    out, err = io.StringIO(), io.StringIO()
    tell_load(Reporter(events_json=True, out=out, err=err), handler, statistics)
    return json.loads(out.getvalue()), err.getvalue()


def test_sentence_and_event_say_the_same_numbers():
    slots = Slots(1024)
    slots.lease(256)
    handler = SimpleNamespace(
        num_sessions=3,
        num_streams=5,
        slots=slots,
        cache_bytes_per_position=MIB // 16,
        bytes_moved=(5 * MIB, 7 * MIB),
        compute_cpu_s=1.5,
        counters=Counters(sessions=9, refused=2, broken=1),
    )
    statistics = Statistics(time.monotonic() - 100)
    statistics.observe(time.monotonic(), BatchReport(4, 600, 15.0, (0.001, 0.002, 0.004, 0.009)))
    event, sentence = told(handler, statistics)
    assert event == {
        "event": "stats",
        "sessions": 3,
        "tokens_per_s": 10.0,
        "batch_mean": 4.0,
        "busy_share": 0.25,
        "compute_cpu_s": 1.5,
        "queue_wait_p50_ms": 4.0,
        "queue_wait_p95_ms": 9.0,
        "cache_used_bytes": 16 * MIB,
        "cache_total_bytes": 64 * MIB,
        "streams": 5,
        "bytes_in": 5 * MIB,
        "bytes_out": 7 * MIB,
        "sessions_total": 9,
        "refused": 2,
        "broken": 1,
    }
    for part in (
        "3 sessions",
        "10.0 tokens/s",
        "4.0 steps per forward",
        "busy 25%",
        "4.0 ms (p95 9.0)",
        "16 of 64 MiB",
        "5.0 MiB in",
        "7.0 MiB out",
    ):
        assert part in sentence
