"""``efedllm verify``: run sessions of its own through every server of a model, judge all that they do, publish it.

    canary ──openings──> judge ──> AUDIT records
    member ──openings──>  │└─ a chunk of a canary that is false ──> CLAIM, with evidence that every node can run again
                          └─ to members: verdicts, for receipts

The event loop holds the verifier's own identity: it plans, publishes, claims, takes part in trials and tells. Each
canary runs in a thread with a node of its own, and the judge in another one. What its sessions say it has made up, so
evidence of them tells nothing of anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from dht.directory import read_directory
from dht.errors import DaemonDied, DhtError
from dht.ident import Role
from dht.identity import Identity
from dht.parameters import parse_join
from dht.records import EMBEDS, HEADS, Announcement, ServerState
from dht.swarm import Swarm
from node.calibrations.current import Current
from node.check.calibration_file import find_calibration
from node.check.patience import until_cancelled
from node.claims.accuser import Accuser
from node.claims.examiner import MAX_EXAMINATION_BYTES, CheckpointExaminer, CurrentExaminer
from node.claims.findings import Examine
from node.client.accusation import accusation_of
from node.client.audit_book import AuditResult, Outcome
from node.client.audit_publisher import AuditPublisher
from node.client.auditor import judged
from node.client.offers import newest
from node.config import IDENTITY
from node.errors import CannotCheck
from node.model.checkpoint import Checkpoint
from node.model.families import check_family
from node.run.audit_teller import audited_fields
from node.run.calibrations import calibration_of_model
from node.run.events import Reporter
from node.run.generate import max_positions
from node.run.libraries import silence_libraries
from node.run.lifetime import until_told_to_stop
from node.run.receipt_keeping import keep_contracts
from node.run.trials import trials
from node.verify.canary import Canary, CanaryModel, Findings
from node.verify.canary_plan import Guise, Held, draw_guise, in_turn, peers_through
from node.verify.canary_text import CanaryTexts
from node.verify.epoch_book import EpochBook, Report
from node.verify.judge_desk import Judged, JudgeDesk
from node.verify.model_judge import ModelJudge

_RULES_S = 15.0
_MIN_PAUSE_S = 0.5
"""Between two canaries, at least."""


@dataclass(frozen=True)
class VerifyOptions:
    """What ``efedllm verify`` was asked for."""

    model: str
    revision: str | None
    home: Path
    join: str
    calibration: Path | None
    """None: the one that this package has for the model, or that the anchors of the swarm name."""
    max_memory_bytes: int | None
    """Of the judge; None: half of what is free."""
    canaries_per_epoch: int
    num_threads: int | None
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    exit_with_stdin: bool


async def run_verifier(options: VerifyOptions, reporter: Reporter) -> None:
    """Check servers until told to stop.

    Raises:
        UserError: there is no such model, or the file is no calibration of it.
    """
    silence_libraries()
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    identity = Identity.load_or_create(options.home / IDENTITY)
    model, current, judge, examine = await asyncio.to_thread(_load, options, reporter)
    join = parse_join(options.join)
    async with contextlib.AsyncExitStack() as exits:
        place = Swarm(identity, join=join, listen=options.listen, announce=options.announce)
        swarm = await exits.enter_async_context(place)
        rules = await swarm.wait_for_rules(_RULES_S)
        contracts = await keep_contracts(exits, options.home, identity, swarm, Role.VERIFIER, model.checkpoint)
        publisher = await exits.enter_async_context(AuditPublisher(swarm, identity, rules))
        keeping = await exits.enter_async_context(trials(options.home, join, swarm, identity, examine, current=current))
        checkpoint = model.checkpoint
        manifest, publishes = checkpoint.manifest32, options.calibration is not None
        await exits.enter_async_context(
            calibration_of_model(options.home, swarm, identity, manifest, current, reporter, publishes=publishes)
        )
        verifier = _Verifier(options, reporter, swarm, model, current, judge, publisher, keeping.accuser)
        desk = JudgeDesk(contracts, manifest, checkpoint.num_blocks, judge.judge_alone, verifier.judged)
        exits.push_async_callback(desk.close)
        await desk.start(swarm)
        reporter.say(f"Checking the servers of {model.checkpoint.short_name} as {identity.peer_id}.")
        reporter.event("ready", {"role": "verifier", "peer_id": identity.peer_id})
        reason = await verifier.run()
        reporter.say(f"Stopping ({reason}).")


def _load(options: VerifyOptions, reporter: Reporter) -> tuple[CanaryModel, Current, ModelJudge, Examine]:
    with reporter.progress() as bar:
        checkpoint = Checkpoint.open(options.model, revision=options.revision, home=options.home, progress=bar.update)
        check_family(checkpoint.config)
        calibration = find_calibration(checkpoint.manifest32, options.calibration)
        model = CanaryModel(checkpoint, options.join)
    bound = options.max_memory_bytes
    current = Current(calibration)
    judge = ModelJudge(checkpoint, current, max_bytes=bound, tell=reporter.say)
    examiner = CheckpointExaminer(checkpoint, calibration, max_bytes=bound or MAX_EXAMINATION_BYTES)
    return model, current, judge, CurrentExaminer(examiner, current)


def _held(server: Announcement, num_blocks: int) -> Held:
    asked = (EMBEDS if server.start == 0 else 0) | (HEADS if server.end == num_blocks else 0)
    return Held(server.owner, server.start, server.end, has_ends=server.ends & asked == asked)


class _Verifier:
    """One canary after the other; what it knows of the servers."""

    def __init__(
        self,
        options: VerifyOptions,
        reporter: Reporter,
        swarm: Swarm,
        model: CanaryModel,
        current: Current,
        judge: ModelJudge,
        publisher: AuditPublisher,
        accuser: Accuser,
    ) -> None:
        self._options = options
        self._reporter = reporter
        self._swarm = swarm
        self._model = model
        self._current = current
        self._judge = judge
        self._publisher = publisher
        self._accuser = accuser
        self._chance = random.SystemRandom()
        config = model.checkpoint.config
        self._texts = CanaryTexts(config.get_text_config().vocab_size, max_positions(config), self._chance)
        self._book = EpochBook()
        self._checked_s: dict[str, float] = {}
        """By peer: when it was checked last, or could not be; monotonic seconds."""
        self._canary: Canary | None = None
        self._has_told_of_gap = False
        self._judged: Counter[Outcome] = Counter()
        """What members have had judged, since it was told last."""

    async def run(self) -> str:
        """Check servers until told to stop; return why."""
        stop = asyncio.create_task(until_told_to_stop(exit_with_stdin=self._options.exit_with_stdin))
        patrol, daemon = asyncio.create_task(self._patrol()), asyncio.create_task(self._swarm.wait_closed())
        try:
            await asyncio.wait({stop, patrol, daemon}, return_when=asyncio.FIRST_COMPLETED)
            if patrol.done():
                patrol.result()
            if daemon.done():
                daemon.result()
            return stop.result() if stop.done() else "p2pd has ended"
        finally:
            if self._canary is not None:
                self._canary.stop()
            for task in (stop, patrol, daemon):
                task.cancel()
            await asyncio.gather(stop, patrol, daemon, return_exceptions=True)
            self._tell(self._book.take())

    async def _patrol(self) -> None:
        await self._wait_for_calibration()
        while True:
            began_s = time.monotonic()
            try:
                await self._check_next()
            except DaemonDied:
                raise
            except DhtError as error:
                self._reporter.say(f"The swarm does not answer ({error}); the next canary tries again.")
            self._tell(self._book.take(self._epoch()))
            # Not at the stroke of a clock: that would tell a server who it is.
            interval_s = self._swarm.validator.rules.epoch_s / self._options.canaries_per_epoch
            due_s = began_s + interval_s * self._chance.uniform(0.5, 1.5)
            await asyncio.sleep(max(_MIN_PAUSE_S, due_s - time.monotonic()))

    async def _wait_for_calibration(self) -> None:
        if self._current.calibration is None:
            self._reporter.say(
                f"There is no calibration of {self._model.checkpoint.name} here, so nobody is judged before anchors "
                "of the swarm name one; make one with `efedllm calibrate`, and pass --calibration FILE."
            )
            await self._current.wait()

    def _epoch(self) -> int:
        return self._swarm.validator.rules.epoch_of(time.time())

    async def _check_next(self) -> None:
        checkpoint = self._model.checkpoint
        directory = await read_directory(self._swarm, checkpoint.manifest32, time.time())
        online = [server for server in newest(directory.servers) if server.state is ServerState.ONLINE]
        servers = {server.owner: _held(server, checkpoint.num_blocks) for server in online}
        self._checked_s = {peer: when_s for peer, when_s in self._checked_s.items() if peer in servers}
        target = next(iter(in_turn([*servers.values()], self._checked_s, self._chance)), None)
        peers = peers_through(target, [*servers.values()], checkpoint.num_blocks) if target is not None else None
        if target is None or peers is None:
            self._tell_of_gap()
            return
        self._has_told_of_gap = False
        await self._check(target, peers, servers)

    def _tell_of_gap(self) -> None:
        if not self._has_told_of_gap:
            self._has_told_of_gap = True
            self._reporter.say("Some blocks of the model have no server, so no session can be run; waiting.")

    async def _check(self, target: Held, peers: frozenset[str], servers: dict[str, Held]) -> None:
        guise = draw_guise([servers[peer] for peer in peers], self._chance)
        script, canary = self._texts.next(), Canary(guise)
        self._canary = canary
        findings = await asyncio.to_thread(canary.run, self._model, peers, script)
        if guise is not Guise.ASKS_TOKENS:  # What is likeliest at every place soon goes round in circles.
            self._texts.keep(findings.text)
        self._checked_s[target.peer_id] = time.monotonic()
        self._tell_canary(target, findings)
        for result in findings.results:
            await self._take(result, servers)
        await self._publisher.publish()

    def _tell_canary(self, target: Held, findings: Findings) -> None:
        if findings.why_not:
            self._book.broke(self._epoch(), target)
        fields = {"peer_id": target.peer_id, "tokens": len(findings.text), "why_not": findings.why_not or None}
        self._reporter.event("canary", fields)

    async def _take(self, result: AuditResult, servers: dict[str, Held]) -> None:
        if result.opening is not None:
            result = judged(result, await until_cancelled(self._judge, result.opening))
        self._publisher.enter(result)
        self._reporter.event("audited", audited_fields(result))
        await self._accuse(result)
        whose = result.owner or result.peer_id
        held = servers.get(whose)
        if held is None:
            return
        if result.outcome in (Outcome.PASS, Outcome.FAIL):
            self._checked_s[whose] = time.monotonic()
        if self._book.enter(self._epoch(), held, result.outcome):
            self._reporter.say(f"The server {whose} has failed an audit ({result.why}).")

    async def _accuse(self, result: AuditResult) -> None:
        """Hold what others can be convinced of; it is claimed when there is a place for it."""
        is_fail = result.outcome is Outcome.FAIL and result.shows_itself
        if not is_fail or result.opening is None or result.measured is None:
            return
        try:
            self._accuser.hold(await asyncio.to_thread(accusation_of, result.opening, result.measured.median_ppm))
        except CannotCheck as error:
            self._reporter.say(f"The server {result.owner} cannot be accused of it: {error}")

    def judged(self, judged: Judged) -> None:
        """Take what a member has had judged."""
        self._judged[judged.outcome] += 1
        fields = {"consumer": judged.consumer, "blocks": f"{judged.start}:{judged.end}", "tokens": judged.tokens}
        self._reporter.event("judged", {**fields, "outcome": judged.outcome.value, "signed": judged.is_signed})

    def _tell_judged(self) -> None:
        counts, self._judged = self._judged, Counter()
        if counts.total():
            self._reporter.say(
                f"Judged for members: {counts.total()} chunks; passed: {counts[Outcome.PASS]}, failed: "
                f"{counts[Outcome.FAIL]}, said nothing: {counts[Outcome.INCONCLUSIVE]}."
            )

    def _tell(self, reports: list[Report]) -> None:
        if reports:  # An epoch has ended, or the verifier stops.
            self._tell_judged()
        for report in reports:
            self._reporter.event("verified", report.as_fields())
            self._reporter.say(report.in_words())
