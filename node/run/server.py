"""``efedllm serve``: one span of one model, announced until the process is told to stop.

The order of start-up is cheap checks first: identity and addresses, config and family, blocks and memory, then the
swarm, and only then the weights, so that whatever is wrong is said before anything is hashed or downloaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dht.announce import Announcer
from dht.directory import read_directory
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.records import Announcement, ManifestRecord, ServerState
from dht.swarm import Swarm
from node import __version__
from node.batching import Limits
from node.engine import Engine
from node.errors import DoesNotFit, UnsupportedFamily
from node.model.checkpoint import Checkpoint
from node.model.ends import Ends
from node.model.families import check_family, max_positions
from node.model.quantise import Scheme
from node.model.span import Span, build_quantised_span, build_span
from node.run.events import Reporter
from node.run.libraries import silence_libraries
from node.run.lifetime import until_told_to_stop
from node.run.load import tell_load
from node.run.serve_plan import Wanted, plan_serving
from node.run.server_ends import EndPlan, announced, in_words
from node.serve.handler import Handler, Served
from node.serve.measure import SpanCost, measure
from node.serve.placement import MemoryPlan, choose_span
from node.serve.prefixes import PrefixStore
from node.serve.slots import PAGE
from node.serve.statistics import Statistics
from node.wire import PROTOCOL

REFRESH_S = 20
"""How often a server renews its announcement, s; the announcement lives three times as long."""
SWEEP_S = 15.0
"""How often idle sessions are looked for, s."""
STATISTICS_S = 60.0
"""How often a server says what it does, s."""
_GPU_LIMITS = Limits(max_rows=128, chunk_tokens=256, full_chunk_tokens=2048)
"""On a GPU a forward of few tokens leaves it idle; no figure of one's own stands behind these numbers yet."""
_PREFIX_SHARE = 8
"""One part in so many of the cache's memory remembers common beginnings of sessions."""


@dataclass(frozen=True)
class ServeOptions:
    """What ``efedllm serve`` was asked for."""

    model: str
    revision: str | None
    home: Path
    join: JoinCode
    blocks: str | None
    num_blocks: int | None
    device: str
    dtype: str
    quantize: str | None
    max_memory_bytes: int | None
    max_sessions: int
    share_prefixes: bool
    offer_ends: bool
    num_threads: int | None
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    exit_with_stdin: bool


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the swarm is asked."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    """What the span computes in."""
    scheme: Scheme | None
    """How its weights are held in fewer bits; None: as ``dtype`` has them."""
    memory: MemoryPlan
    span: tuple[int, int] | None
    """The blocks asked for; None: the swarm decides where the need is."""
    ends: EndPlan | None
    """Embedding and head, for clients without weights; None: not offered."""

    @property
    def weight_dtype(self) -> str:
        """What the weights are held in, as the announcement says it."""
        return self.scheme.name if self.scheme else _name(self.dtype)


async def run_server(options: ServeOptions, reporter: Reporter) -> None:
    """Serve until told to stop."""
    silence_libraries()
    # Asked too early, a server has nothing to tell; it must not end for it, which is what the signal does by itself.
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGUSR1, lambda: reporter.say("Still starting: statistics come when the server is ready.")
    )
    identity = Identity.load_or_create(options.home / "identity")
    place = Swarm(identity, join=options.join, listen=options.listen, announce=options.announce)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    with reporter.progress() as bar:
        checkpoint = await asyncio.to_thread(_open_checkpoint, options, bar.update)
        plan = await asyncio.to_thread(_plan, options, checkpoint, reporter)
        async with contextlib.AsyncExitStack() as exits:
            swarm = await exits.enter_async_context(place)
            reporter.say(f"Memory: {plan.memory}")
            manifest = await asyncio.to_thread(lambda: checkpoint.manifest32)
            start, end = plan.span or await _needed_span(swarm, manifest, plan)
            reporter.say(f"Loading blocks {start}:{end} of {checkpoint.short_name} ...")
            announcing = _Announcing(identity, swarm, checkpoint, plan, (start, end))
            await exits.enter_async_context(announcing.announcer)
            statistics = Statistics(time.monotonic())
            engine = await exits.enter_async_context(
                Engine(
                    limits=_GPU_LIMITS if plan.device.type == "cuda" else Limits(),
                    observe=lambda report: statistics.observe(time.monotonic(), report),
                )
            )
            span = await asyncio.to_thread(_load, plan, start, end)
            ends = await asyncio.to_thread(_load_ends, plan, (start, end), reporter)
            cost = await engine.submit(lambda: measure(span, checkpoint.config.hidden_size))
            gc.collect()
            gc.freeze()  # What start-up made stays; the collector need not walk it again between two steps.
            bar.__exit__()
            handler = _make_handler(plan, span, ends, manifest, swarm, engine, options)
            await swarm.serve(PROTOCOL, handler.handle)
            await announcing.online(handler, cost, announced(ends))
            announce_start = partial(_announce_start, reporter, swarm, plan, span, cost, ends)
            say_load = partial(tell_load, reporter, handler, statistics)
            reason = await _serve_until_stopped(handler, swarm, options, announce_start, say_load)
            reporter.say(f"Stopping ({reason}): the announcement is withdrawn.")


def _open_checkpoint(options: ServeOptions, progress: Any) -> Checkpoint:
    checkpoint = Checkpoint.open(options.model, revision=options.revision, home=options.home, progress=progress)
    check_family(checkpoint.config)
    return checkpoint


def _plan(options: ServeOptions, checkpoint: Checkpoint, reporter: Reporter) -> _Plan:
    wanted = Wanted(
        blocks=options.blocks,
        num_blocks=options.num_blocks,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        max_memory_bytes=options.max_memory_bytes,
        offer_ends=options.offer_ends,
    )
    plan = plan_serving(wanted, checkpoint, reporter.say)
    weights = plan.weights
    return _Plan(checkpoint, weights.device, weights.dtype, weights.scheme, plan.memory, plan.span, plan.ends)


async def _needed_span(swarm: Swarm, manifest: bytes, plan: _Plan) -> tuple[int, int]:
    directory = await read_directory(swarm, manifest, time.time())
    return choose_span(directory.servers, plan.checkpoint.num_blocks, plan.memory.num_blocks)


def _load(plan: _Plan, start: int, end: int) -> Span:
    config, dtype, device = plan.checkpoint.config, plan.dtype, plan.device

    def tensors(first: int, last: int) -> dict[str, torch.Tensor]:
        return plan.checkpoint.load_span(first, last, dtype=dtype, device=device)

    if plan.scheme is None:
        return build_span(config, tensors(start, end), start, end, dtype=dtype, device=device)
    return build_quantised_span(
        config,
        lambda block: tensors(block, block + 1),
        start,
        end,
        scheme=plan.scheme,
        dtype=dtype,
        device=device,
    )


def _load_ends(plan: _Plan, span: tuple[int, int], reporter: Reporter) -> Ends | None:
    if plan.ends is None:
        return None
    try:
        return plan.ends.load(span)
    except UnsupportedFamily as error:
        reporter.say(f"Clients without weights are not served here: {error}")
        return None


def _make_handler(
    plan: _Plan,
    span: Span,
    ends: Ends | None,
    manifest: bytes,
    swarm: Swarm,
    engine: Engine,
    options: ServeOptions,
) -> Handler:
    spared = plan.memory.end_bytes - (ends.weight_bytes if ends else 0)
    cache_bytes = plan.memory.cache_bytes + max(0, spared)
    prefix_bytes = cache_bytes // _PREFIX_SHARE
    log_bytes = plan.checkpoint.config.hidden_size * span.dtype.itemsize  # what is handed on of a position, and kept
    num_positions = (cache_bytes - prefix_bytes) // (span.cache_bytes_per_position + log_bytes)
    if num_positions < PAGE:
        raise DoesNotFit("The weights fit but leave no memory for a session; take fewer blocks, or pass --no-ends.")
    served = Served(
        span=span,
        manifest=manifest,
        hidden_size=plan.checkpoint.config.hidden_size,
        num_blocks=plan.checkpoint.num_blocks,
        ends=ends,
        max_sessions=options.max_sessions,
        max_positions=max_positions(plan.checkpoint.config),
        shares_prefixes=options.share_prefixes,
    )
    arena = span.new_arena(num_positions)
    return Handler(served, engine, swarm.dial, arena, PrefixStore(prefix_bytes), num_positions * log_bytes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Announcing:
    """Keeps the server's announcement true: joining, online, and what is free."""

    def __init__(
        self, identity: Identity, swarm: Swarm, checkpoint: Checkpoint, plan: _Plan, span: tuple[int, int]
    ) -> None:
        self._identity = identity
        self._swarm = swarm
        self._checkpoint = checkpoint
        self._plan = plan
        self._span = span
        self._handler: Handler | None = None
        self._cost: SpanCost | None = None
        self._ends = 0
        self.announcer = Announcer(swarm, identity, self._records, refresh_s=REFRESH_S)

    async def online(self, handler: Handler, cost: SpanCost, ends: int) -> None:
        """Announce that sessions are taken from now on; ``ends`` as the announcement has it."""
        self._handler, self._cost, self._ends = handler, cost, ends
        await self.announcer.update()

    def _records(self, t: int, life_s: int) -> list[Announcement | ManifestRecord]:
        config, manifest = self._checkpoint.config, self._checkpoint.manifest32
        slots = self._handler.slots if self._handler else None
        announcement = Announcement(
            manifest=manifest,
            shard=0,
            owner=self._identity.peer_id,
            t=t,
            life_s=life_s,
            state=ServerState.ONLINE if self._handler else ServerState.JOINING,
            start=self._span[0],
            end=self._span[1],
            dtype=self._plan.weight_dtype,
            throughput_milli=int(self._cost.blocks_per_s * 1000) if self._cost else 0,
            max_length=slots.total if slots else 0,
            cache_free_tokens=slots.free if slots else 0,
            addresses=tuple(self._swarm.addresses[:8]),
            version=__version__,
            ends=self._ends,
        )
        model = ManifestRecord(
            manifest=manifest,
            owner=self._identity.peer_id,
            t=t,
            life_s=life_s,
            name=self._checkpoint.name,
            model_type=config.model_type,
            num_blocks=self._checkpoint.num_blocks,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
        )
        return [announcement, model]


def _announce_start(
    reporter: Reporter, swarm: Swarm, plan: _Plan, span: Span, cost: SpanCost, ends: Ends | None
) -> None:
    blocks, model = f"{span.start}:{span.end}", plan.checkpoint.short_name
    held = f" with weights in {plan.scheme.name}" if plan.scheme else ""
    reporter.say(
        f"Serving blocks {blocks} of {model} as {swarm.peer_id} on {span.device} in "
        f"{_name(span.dtype)}{held}: {cost.blocks_per_s / (span.end - span.start):.1f} steps/s measured."
    )
    if ends is not None:
        reporter.say(in_words(ends))
    for address in swarm.addresses:
        reporter.say(f"  {address}")
    if all("/ip4/127." in address for address in swarm.addresses):
        reporter.say("Only this machine can reach it; open it to others with --listen /ip4/0.0.0.0/tcp/31338")
    reporter.event("ready", {"role": "server", "peer_id": swarm.peer_id, "model": model, "blocks": blocks})


async def _serve_until_stopped(
    handler: Handler,
    swarm: Swarm,
    options: ServeOptions,
    announce_start: Callable[[], None],
    say_load: Callable[[], None],
) -> str:
    """Return why the server should stop; raises if its p2pd dies."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            await handler.expire(time.monotonic())

    async def tell() -> None:
        while True:
            await asyncio.sleep(STATISTICS_S)
            say_load()

    told = asyncio.create_task(until_told_to_stop(exit_with_stdin=options.exit_with_stdin))
    tasks = [told, asyncio.create_task(sweep()), asyncio.create_task(tell()), asyncio.create_task(swarm.wait_closed())]
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, say_load)
    try:
        await asyncio.sleep(0)  # Signals are listened for before anyone hears that we are ready.
        announce_start()
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return told.result() if told.done() else "p2pd has ended"
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
        handler.drain()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
