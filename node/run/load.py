"""What ``efedllm serve`` tells its donor once a minute, and whenever SIGUSR1 asks. Runs in the event loop."""

from __future__ import annotations

import time

from node.run.events import Reporter
from node.serve.handler import Handler
from node.serve.placement import MIB
from node.serve.statistics import Statistics


def tell_load(reporter: Reporter, handler: Handler, statistics: Statistics) -> None:
    """Say what a donor wants to know of the last minute."""
    load, slots = statistics.load(time.monotonic()), handler.slots
    per_position = handler.cache_bytes_per_position
    used, total = (slots.total - slots.free) * per_position, slots.total * per_position
    bytes_in, bytes_out = handler.bytes_moved
    reporter.say(
        f"{handler.num_sessions} sessions, {load.tokens_per_s:.1f} tokens/s, {load.batch_mean:.1f} steps per forward, "
        f"busy {load.busy_share:.0%}, queue wait {load.wait_p50_ms:.1f} ms (p95 {load.wait_p95_ms:.1f}), "
        f"cache {used / MIB:.0f} of {total / MIB:.0f} MiB, {bytes_in / MIB:.1f} MiB in, {bytes_out / MIB:.1f} MiB out"
    )
    reporter.event(
        "stats",
        {
            "sessions": handler.num_sessions,
            "tokens_per_s": round(load.tokens_per_s, 2),
            "batch_mean": round(load.batch_mean, 2),
            "busy_share": round(load.busy_share, 4),
            "compute_cpu_s": round(handler.compute_cpu_s, 3),
            "queue_wait_p50_ms": round(load.wait_p50_ms, 3),
            "queue_wait_p95_ms": round(load.wait_p95_ms, 3),
            "cache_used_bytes": used,
            "cache_total_bytes": total,
            "streams": handler.num_streams,
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "sessions_total": handler.counters.sessions,
            "refused": handler.counters.refused,
            "broken": handler.counters.broken,
        },
    )
