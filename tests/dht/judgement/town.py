"""A town whose people claim, deny, judge and appeal as they are told, by the duties that the code gives them."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from dht.claim import Claim
from dht.contest import Contest
from dht.identity import Identity
from dht.judgement.docket import Case, FirstSeen, open_cases
from dht.judgement.duties import Duty, duties
from dht.judgement.holdings import Holdings
from dht.judgement.judge import Court, judge
from dht.judgement.outcomes import Outcomes
from dht.judgement.timeline import PHASES, Act, Timeline
from dht.rules import DEFAULT_RULES, Rules
from dht.verdict import Opinion, Verdict, commit, reveal
from tests.dht.samples import EPOCH, receipt

PEOPLE = tuple(Identity.from_seed(number.to_bytes(32, "big")) for number in range(1, 201))
PEERS = tuple(each.peer_id for each in PEOPLE)
BY_ID = {each.peer_id: each for each in PEOPLE}
ACCUSED, ACCUSER = PEERS[:2]
ANCHORS = PEERS[190:195]
ONE = 2**40
RULES = DEFAULT_RULES
UNIT_S = RULES.epoch_s // 12
T = RULES.start_of(EPOCH) + 100

UP, DOWN, SHRUG = Opinion.UPHELD, Opinion.REFUTED, Opinion.INCONCLUSIVE
Says = Callable[[str, Claim, int], Opinion | None]
"""What a member finds of a claim at a level; None: it stays away."""


def claim_of(accuser: str = ACCUSER, accused: str = ACCUSED, *, epoch: int = EPOCH, lane: int = 7, **changes) -> Claim:
    """A claim signed 100 s into an epoch; the judgement does not look at the signature inside."""
    began = RULES.start_of(epoch)
    work = receipt(
        BY_ID[accused], BY_ID[PEERS[199]], epoch=epoch, lane=lane, t_first=began + 10, t_last=began + 20
    ).to_body()
    made = Claim(
        accuser, epoch, 0, work, bytes(64), bytes(16), segment=0, index=4, error_ppm=500_000, evidence=bytes(32),
        evidence_bytes=1000, t=began + 100,
    )  # fmt: skip
    return replace(made, **changes)


def court_of(
    holders: Sequence[str] = PEERS,
    credibility: dict[str, int] | None = None,
    anchors: Sequence[str] = ANCHORS,
    first_seen_s: FirstSeen | None = None,
    epochs: Iterable[int] = range(EPOCH - 1, EPOCH + 60),
    rules: Rules = RULES,
) -> Court:
    """A court before which everybody has worked on the blocks, and is as credible as anybody else."""
    spans = [
        receipt(BY_ID[holder], BY_ID[PEERS[199 if holder != PEERS[199] else 0]], epoch=epoch)
        for holder in holders
        for epoch in range(EPOCH - 1, max(epochs), 7)
    ]
    weights = dict.fromkeys(PEERS, ONE) if credibility is None else credibility
    return Court(rules, Holdings(spans), dict.fromkeys(epochs, weights), anchors, first_seen_s or {})


@dataclass
class Town:
    """People with a court, some claims, and what was signed about them."""

    court: Court
    claims: list[Claim]
    contests: list[Contest]
    verdicts: list[Verdict]

    @property
    def cases(self) -> tuple[Case, ...]:
        return open_cases(self.claims, self.contests, self.verdicts)

    def outcomes(self, now_s: float | None = None) -> Outcomes:
        """What follows when all is over, or as of some second."""
        over = max(claim.t for claim in self.claims) + 30 * UNIT_S
        return judge(self.cases, self.court, over if now_s is None else now_s)


def play(
    claims: Sequence[Claim],
    says: Says,
    *,
    court: Court | None = None,
    denies: bool = True,
    appeals: bool = True,
    until: int = 24,
    seed: int = 0,
) -> Town:
    """Let everybody do its duty for so many units after each claim; who loses appeals, if it is said to."""
    chance = random.Random(seed)
    town = Town(court or court_of(), list(claims), [], [])
    salts: dict[tuple[str, bytes, int], tuple[Opinion, bytes]] = {}
    clocks = [Timeline.of(claim.t, town.court.rules) for claim in claims]
    for now_s in sorted({clock.opens_s(phase) for clock in clocks for phase in PHASES if phase.start < until}):
        cases = town.cases
        outcomes = judge(cases, town.court, now_s)
        by_hash = {case.hash: case.claim for case in cases}
        people = {each for ruling in outcomes.rulings for each in (ruling.accused, ruling.accuser)}
        people |= {each for ruling in outcomes.rulings for members in ruling.committees for each in members}
        for member in sorted(people):
            for duty in duties(member, cases, outcomes, town.court.rules, now_s):
                _act(town, member, by_hash[duty.claim], duty, now_s, says, salts, chance, (denies, appeals))
    return town


def _act(
    town: Town, member: str, claim: Claim, duty: Duty, now_s: int, says: Says, salts: dict, chance: random.Random,
    willing: tuple[bool, bool],
) -> None:  # fmt: skip
    key = (member, duty.claim, duty.level)
    match duty.act:
        case Act.CONTEST | Act.APPEAL:
            if willing[duty.act is Act.APPEAL]:
                made = Contest(member, claim.epoch, claim.hash, claim.accuser, duty.level, now_s)
                town.contests.append(made)
        case Act.COMMIT:
            opinion = says(member, claim, duty.level)
            if opinion is not None:
                salts[key] = opinion, chance.randbytes(32)
                town.verdicts.append(commit(member, claim.epoch, claim.hash, duty.level, *salts[key], now_s))
        case Act.REVEAL:
            opened = reveal(member, claim.epoch, claim.hash, duty.level, *salts[key], 500_000, now_s)
            town.verdicts.append(opened)
