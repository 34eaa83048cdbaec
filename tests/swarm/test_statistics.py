"""A server asked by SIGUSR1 says what it did: the numbers are those of the work that this test gave it."""

import math
import signal
import time

import torch

TIMEOUT_S = 20.0


def statistics_of(process):
    """Ask a server for its statistics; return the event. What it has said by itself, once a minute, is old."""
    while not process.events.empty():
        process.events.get()
    process.signal(signal.SIGUSR1)
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        event = process.events.get(timeout=max(0.0, deadline_s - time.monotonic()))
        assert event is not None, process.errors
        if event["event"] == "stats":
            return event


def test_a_server_says_on_request_what_it_has_done(llama):
    before = [statistics_of(server) for server in llama.servers]
    ids = torch.arange(5, 45).unsqueeze(0)
    num_new = 8
    with llama.remote.inference_session(max_length=64):
        llama.remote.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False)
        during = [statistics_of(server) for server in llama.servers]
    num_tokens = ids.shape[1] + num_new - 1
    for earlier, event in zip(before, during, strict=True):
        assert event["sessions"] == earlier["sessions"] + 1
        assert event["sessions_total"] == earlier["sessions_total"] + 1
        assert event["refused"] == earlier["refused"]
        # Of the last minute; what other tests did in it may leave it meanwhile.
        assert event["tokens_per_s"] >= math.floor(100 * num_tokens / 60) / 100
        assert event["batch_mean"] >= 1
        assert 0 <= event["busy_share"] <= 1, "of a whole minute, in thousandths"
        assert 0 < event["queue_wait_p50_ms"] <= event["queue_wait_p95_ms"]
        assert event["cache_used_bytes"] > earlier["cache_used_bytes"]
        assert event["cache_used_bytes"] < event["cache_total_bytes"] == earlier["cache_total_bytes"]
        hidden_bytes = num_tokens * llama.local.config.hidden_size * 4
        assert hidden_bytes < event["bytes_in"] - earlier["bytes_in"] < 2 * hidden_bytes + 64 * 1024
        assert hidden_bytes < event["bytes_out"] - earlier["bytes_out"] < 2 * hidden_bytes + 64 * 1024
    deadline_s = time.monotonic() + TIMEOUT_S
    for earlier, server in zip(before, llama.servers, strict=True):
        while (after := statistics_of(server))["sessions"] > earlier["sessions"]:
            assert time.monotonic() < deadline_s
        assert after["cache_used_bytes"] == earlier["cache_used_bytes"]


def test_a_server_says_it_to_people_too(llama):
    server = llama.servers[0]
    said = len(server.errors)
    statistics_of(server)
    deadline_s = time.monotonic() + TIMEOUT_S
    while not any("tokens/s" in line and "queue wait" in line for line in server.errors[said:]):
        assert time.monotonic() < deadline_s, server.errors[said:]
        time.sleep(0.05)
