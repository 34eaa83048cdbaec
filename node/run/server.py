"""``efedllm serve``: a span of one model, announced until its donor says otherwise.

The order of start-up is cheap checks first: identity and addresses, config and family, blocks and memory, then the
swarm, and only then the weights. At the end it drains: new sessions are refused, clients are asked to take theirs
elsewhere, the announcement is withdrawn, and only then are streams closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import time
from typing import Any

import torch

from dht.directory import read_directory
from dht.errors import DhtError
from dht.ident import Role
from dht.identity import Identity
from dht.records import ServerState
from dht.swarm import Stream, Swarm
from node.batching import Limits
from node.calibrations.current import Current
from node.claims.examiner import CurrentExaminer, examiner_of
from node.engine import Engine
from node.errors import NodeError, Refused
from node.model.span import Span
from node.run import control_socket
from node.run.announcing import Announcing
from node.run.calibrations import calibration_of_model
from node.run.client_levels import ClientLevels
from node.run.doors import Doors
from node.run.events import Reporter
from node.run.libraries import silence_libraries
from node.run.lifetime import STDIN_ENDED, stop_words, until_stdin_ends
from node.run.load import tell_load
from node.run.loading import ServeOptions, load_ends, load_span, make_handler, name_of, open_checkpoint
from node.run.network_rate import carried_tokens_per_s, measure_network
from node.run.receipt_keeping import keep_contracts
from node.run.serve_plan import ServePlan, plan_serving
from node.run.server_ends import announced, in_words
from node.run.trials import trials
from node.serve.balance import choose_span
from node.serve.contracts import Contracts
from node.serve.handler import Handler
from node.serve.measure import SpanCost, measure
from node.serve.patience import Patience
from node.serve.precedence import Precedence
from node.serve.statistics import Statistics
from node.wire import PROTOCOL

CHECK_S = 1.0
"""How often signatures are asked for that are due by the clock, s."""
SWEEP_S = 15.0
"""How often idle sessions are looked for, s."""
STATISTICS_S = 60.0
"""How often a server says what it does, s."""
_GPU_LIMITS = Limits(max_rows=128, chunk_tokens=256, full_chunk_tokens=2048)
"""On a GPU a forward of few tokens leaves it idle; no figure of one's own stands behind these numbers yet."""
_AS_LONG_AS_IT_TAKES_S = 2**20 - 1
_LEAVING = Refused("draining", "This server is leaving; choose another.", retryable=True)


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
        checkpoint = await asyncio.to_thread(open_checkpoint, options, bar.update)
        plan = await asyncio.to_thread(plan_serving, options.wanted, checkpoint, reporter.say)
        async with contextlib.AsyncExitStack() as exits:
            swarm = await exits.enter_async_context(place)
            reporter.say(f"Memory: {plan.memory}")
            hashing = asyncio.to_thread(lambda: checkpoint.manifest32)
            manifest, network = await asyncio.gather(hashing, measure_network(swarm, options.max_bytes_per_s))
            _say_network(network, reporter)
            span = plan.span or await _needed_span(swarm, manifest, plan)
            statistics = Statistics(time.monotonic())
            token_bytes = checkpoint.config.hidden_size * plan.weights.dtype.itemsize
            carried = carried_tokens_per_s(network, options.max_bytes_per_s, token_bytes)
            announcing = Announcing(identity, swarm, plan, statistics, carried)
            announcing.joining(span)
            await exits.enter_async_context(announcing.announcer)
            contracts = None
            if options.keeps_receipts:
                contracts = await keep_contracts(exits, options.home, identity, swarm, Role.SERVER, checkpoint)
            examiner = await asyncio.to_thread(examiner_of, checkpoint, options.calibration)
            current = Current(examiner.calibration)
            examine = CurrentExaminer(examiner, current)
            keeping = await exits.enter_async_context(
                trials(options.home, options.join, swarm, identity, examine, anchors=options.anchors, current=current)
            )
            await exits.enter_async_context(
                calibration_of_model(
                    options.home, swarm, identity, manifest, current, reporter, anchors=options.anchors
                )
            )
            levels = ClientLevels(keeping.board)
            engine = await exits.enter_async_context(
                Engine(
                    limits=_GPU_LIMITS if plan.weights.device.type == "cuda" else Limits(),
                    observe=lambda report: statistics.observe(time.monotonic(), report),
                )
            )
            server = _Server(
                options, reporter, plan, manifest, swarm, engine, announcing, statistics, contracts, levels
            )
            await server.load(span)
            bar.__exit__()
            await swarm.serve(PROTOCOL, server.handle)
            reason = await server.serve()
            reporter.say(f"Stopping ({reason}): the announcement is withdrawn.")


def _say_network(bytes_per_s: float | None, reporter: Reporter) -> None:
    if bytes_per_s is not None:
        reporter.say(f"Network: {bytes_per_s / 1e6:.1f} MB/s to and from the swarm.")


async def _needed_span(swarm: Swarm, manifest: bytes, plan: ServePlan) -> tuple[int, int]:
    directory = await read_directory(swarm, manifest, time.time())
    others = [server for server in directory.servers if server.owner != swarm.peer_id]  # Not what we were a moment ago.
    return choose_span(others, plan.checkpoint.num_blocks, plan.memory.num_blocks)


class _Server:
    """One server: the span that it holds now, and what its donor wants."""

    def __init__(
        self,
        options: ServeOptions,
        reporter: Reporter,
        plan: ServePlan,
        manifest: bytes,
        swarm: Swarm,
        engine: Engine,
        announcing: Announcing,
        statistics: Statistics,
        contracts: Contracts | None,
        levels: ClientLevels,
    ) -> None:
        self._options = options
        self._reporter = reporter
        self._plan = plan
        self._manifest = manifest
        self._swarm = swarm
        self._engine = engine
        self._announcing = announcing
        self._statistics = statistics
        self._contracts = contracts
        self._precedence = Precedence(levels.level_of)
        self._handler: Handler | None = None
        """None while blocks are loaded."""
        self._doors = Doors(options.hours, self._enter_state)
        self._told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handle(self, stream: Stream) -> None:
        """Serve one stream; without blocks there is nothing to say."""
        if self._handler is not None:
            await self._handler.handle(stream)

    async def load(self, span: tuple[int, int]) -> None:
        """Load blocks and get ready to serve them."""
        plan = self._plan
        self._reporter.say(f"Loading blocks {span[0]}:{span[1]} of {plan.checkpoint.short_name} ...")
        loaded = await asyncio.to_thread(load_span, plan, *span)
        ends = await asyncio.to_thread(load_ends, plan, span, self._reporter)
        cost = await self._engine.submit(lambda: measure(loaded, plan.checkpoint.config.hidden_size))
        gc.collect()
        gc.freeze()  # What start-up made stays; the collector need not walk it again between two steps.
        handler = make_handler(
            plan, loaded, ends, self._manifest, self._swarm.dial, self._engine, self._options, self._contracts,
            self._precedence,
        )  # fmt: skip
        self._announcing.loaded(handler, cost, announced(ends))
        self._handler = handler
        self._say_what_is_served(loaded, cost)
        if ends is not None:
            self._reporter.say(in_words(ends))

    def _say_what_is_served(self, span: Span, cost: SpanCost) -> None:
        held = f" with weights in {self._plan.weights.scheme.name}" if self._plan.weights.scheme else ""
        self._reporter.say(
            f"Serving blocks {span.start}:{span.end} of {self._plan.checkpoint.short_name} as {self._swarm.peer_id} on "
            f"{span.device} in {name_of(span.dtype)}{held}: {cost.blocks_per_s / (span.end - span.start):.1f} steps/s "
            "measured."
        )

    async def serve(self) -> str:
        """Serve until told to leave; return why. Raises if p2pd dies."""
        loop = asyncio.get_running_loop()
        words = stop_words()
        loop.add_signal_handler(signal.SIGUSR1, self._say_load)
        told = asyncio.create_task(words.get())
        watching = [self._sweep(), self._ask_for_signatures(), self._tell_load(), self._swarm.wait_closed()]
        watching += [self._doors.watch(), self._announcing.watch_neighbours()]
        tasks = [asyncio.create_task(work) for work in watching]
        balancing = asyncio.create_task(self._balance(self._options.balance_every_s))
        ending = [asyncio.create_task(until_stdin_ends())] if self._options.exit_with_stdin else []
        try:
            async with contextlib.AsyncExitStack() as exits:
                await self._listen(exits)
                await self._doors.open()
                self._say_ready()
                stops: list[asyncio.Future[str]] = [*ending, told, self._told]
                waiting: list[asyncio.Future[Any]] = [*stops, *tasks, balancing]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in (*tasks, balancing):
                    if task.done():
                        task.result()
                await _cancel(balancing)
                reasons = [stop.result() for stop in stops if stop.done()] or ["p2pd has ended"]
                if STDIN_ENDED not in reasons:
                    await self._drain(reasons[0], words, ending)
                return reasons[0]
        finally:
            loop.remove_signal_handler(signal.SIGUSR1)
            await _cancel(told, *ending, *tasks, balancing)

    async def _listen(self, exits: contextlib.AsyncExitStack) -> None:
        """Let the donor's commands reach this server, where the system can do that."""
        try:
            await exits.enter_async_context(control_socket.listening(self._options.home, self._obey))
        except OSError as error:
            self._reporter.say(f"`efedllm drain`, `pause` and `resume` do not reach this server ({error}); signals do.")

    def _say_ready(self) -> None:
        span = self._span
        for address in self._swarm.addresses:
            self._reporter.say(f"  {address}")
        if all("/ip4/127." in address for address in self._swarm.addresses):
            self._reporter.say("Only this machine can reach it; open it to others with --listen /ip4/0.0.0.0/tcp/31338")
        elif self._swarm.num_relays:
            self._reporter.say("Machines that cannot dial it directly reach it through the relay of the bootstrap.")
        model, blocks = self._plan.checkpoint.short_name, f"{span.start}:{span.end}"
        fields = {"role": "server", "peer_id": self._swarm.peer_id, "model": model, "blocks": blocks}
        self._reporter.event("ready", fields)

    @property
    def _span(self) -> Span:
        assert self._handler is not None
        return self._handler.span

    # What the donor wants.

    async def _obey(self, word: str) -> dict[str, Any]:
        match word:
            case control_socket.DRAIN:
                if not self._told.done():
                    self._told.set_result("efedllm drain")
                await self._doors.leave()
            case "pause":
                await self._doors.pause()
            case "resume":
                await self._doors.resume()
            case _:
                return {"error": f"This server does not know the word {word[:32]!r}; it is of another version."}
        sessions = self._handler.num_sessions if self._handler else 0
        return {"state": self._doors.state.name.lower(), "sessions": sessions, "why": self._doors.why}

    async def _enter_state(self, state: ServerState) -> None:
        """Open or close the doors as ``state`` wants it, and say so to the swarm and to the donor."""
        handler = self._handler
        if handler is None:
            return
        if state is ServerState.ONLINE:
            handler.open_doors()
        else:
            reason = Refused("draining", f"This server takes no sessions now: {self._doors.why}.", retryable=True)
            handler.close_doors(_LEAVING if state is ServerState.DRAINING else reason)
        await self._announcing.state(state)
        if state is ServerState.PAUSED:
            handler.ask_to_leave(_AS_LONG_AS_IT_TAKES_S)  # Who cannot go elsewhere is served to the end.
        fields = {"state": state.name.lower(), "sessions": handler.num_sessions, "why": self._doors.why}
        self._reporter.event("state", fields)
        if self._doors.why:
            self._reporter.say(f"No new sessions ({self._doors.why}); {handler.num_sessions} are running.")

    async def _drain(self, reason: str, words: asyncio.Queue[str], ending: list[asyncio.Task[str]]) -> None:
        """Let every session go elsewhere or end; a second signal, or the end of our parent, cuts that short."""
        again = asyncio.create_task(words.get())
        handing = asyncio.create_task(self._hand_all_over(reason))
        try:
            await asyncio.wait({again, handing, *ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(again, handing)
        if self._handler is not None:
            await self._handler.end_all(_LEAVING)

    async def _hand_all_over(self, reason: str) -> None:
        await self._doors.leave()
        handler, patience_s = self._handler, self._options.drain_timeout_s
        if handler is None or not handler.num_sessions:
            return
        self._reporter.say(
            f"Leaving ({reason}): {handler.num_sessions} sessions have {patience_s:.0f} s to go elsewhere; once more "
            "ends it at once."
        )
        await handler.hand_over(patience_s)

    # What is done again and again.

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._handler is not None:
                await self._handler.expire(time.monotonic())

    async def _ask_for_signatures(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            if self._handler is not None:
                await self._handler.check_due()

    async def _balance(self, every_s: float) -> None:
        """Look now and then whether the swarm needs this server at other blocks more, and move there."""
        if self._plan.span is not None or not every_s:
            await asyncio.get_running_loop().create_future()  # It stays where it is.
        patience = Patience()
        while True:
            await asyncio.sleep(every_s * random.uniform(0.8, 1.2))  # noqa: S311 - so that not all look at once
            if self._doors.state is not ServerState.ONLINE:
                continue
            with contextlib.suppress(DhtError):
                directory = await read_directory(self._swarm, self._manifest, time.time())
                move = await asyncio.to_thread(
                    patience.plan_move,
                    directory.servers,
                    self._swarm.peer_id,
                    self._plan.checkpoint.num_blocks,
                    time.monotonic(),
                )
                if move is not None and self._doors.state is ServerState.ONLINE:
                    await self._move((move.start, move.end))

    async def _move(self, to: tuple[int, int]) -> None:
        """Give the present blocks up for others: sessions go elsewhere first."""
        handler = self._handler
        assert handler is not None
        old = handler.span.start, handler.span.end
        self._reporter.say(f"Moving from blocks {old[0]}:{old[1]} to {to[0]}:{to[1]}, which the swarm needs more.")
        self._doors.shut()
        handler.close_doors(_LEAVING)
        self._announcing.joining(to)  # Others count on it there at once; otherwise they would follow.
        await self._announcing.state(ServerState.JOINING)
        await handler.hand_over(self._options.drain_timeout_s)
        await asyncio.sleep(handler.held_s)  # What has just ended may still be opened to its clients.
        await handler.close(_LEAVING)
        self._handler = handler = None
        gc.unfreeze()  # What is given up must not stay for being frozen.
        gc.collect()
        if (failure := await self._try_to_load(to)) is not None:
            self._reporter.say(f"Blocks {to[0]}:{to[1]} cannot be loaded ({failure}); going back to {old[0]}:{old[1]}.")
            gc.collect()
            await self._load_anew(old)
        span = self._span
        self._reporter.event("moved", {"from": f"{old[0]}:{old[1]}", "to": f"{span.start}:{span.end}"})

    async def _try_to_load(self, span: tuple[int, int]) -> str | None:
        """Load other blocks; return what went wrong, as words that hold nothing of what was loaded so far."""
        try:
            await self._load_anew(span)
        except (NodeError, OSError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError without memory.
            return str(error)
        return None

    async def _load_anew(self, span: tuple[int, int]) -> None:
        self._announcing.joining(span)
        await self.load(span)
        await self._doors.open()

    async def _tell_load(self) -> None:
        while True:
            await asyncio.sleep(STATISTICS_S)
            self._say_load()

    def _say_load(self) -> None:
        if self._handler is not None:
            tell_load(self._reporter, self._handler, self._statistics)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
