"""A trial on a real DHT: whoever reads it comes to the same outcome, and nobody writes in another's name."""

import asyncio
import time
from dataclasses import replace

from dht.claim import Claim
from dht.contest import Contest
from dht.identity import peer_id_to_bytes
from dht.judgement.docket import open_cases
from dht.judgement.holdings import Holdings
from dht.judgement.judge import Court, judge
from dht.judgement.outcomes import State
from dht.judgement.timeline import Act, Timeline, phase_of
from dht.records import Envelope, Kind, place, seal
from dht.reputation import Conviction
from dht.rules import DEFAULT_RULES
from dht.testnet import testnet
from dht.verdict import Opinion, commit, reveal
from tests.dht.samples import receipt


async def read(swarm, peers, epoch):
    """Read all that these peers have signed of the trials of an epoch, as a node would."""
    parts = [(peer_id_to_bytes(peer), epoch) for peer in peers]
    kinds = (Kind.CLAIM, Kind.CONTEST, Kind.VERDICT)
    return [[record for part in parts for record in await swarm.fetch(kind, part)] for kind in kinds]


async def test_everybody_reads_the_same_trial_and_comes_to_the_same_outcome():
    rules = DEFAULT_RULES
    epoch = rules.epoch_of(time.time()) - 3  # so long ago that all of it can have been signed
    began = rules.start_of(epoch)
    async with testnet(4) as swarms:
        accused, accuser, *members = (swarm._identity for swarm in swarms)
        work = receipt(accused, accuser, epoch=epoch, t_first=began + 10, t_last=began + 20).to_body()
        claim = Claim(
            accuser.peer_id, epoch, 0, work, accused.sign(2, work), bytes(16), segment=0, index=0, error_ppm=500_000,
            evidence=bytes(32), evidence_bytes=1000, t=began + 60,
        )  # fmt: skip
        clock = Timeline.of(claim.t, rules)
        said = [(member, member.peer_id, epoch, claim.hash, 1, Opinion.UPHELD, bytes(32)) for member in members]
        signed = [
            (swarms[1], seal(claim, accuser)),
            (swarms[0], seal(Contest(accused.peer_id, epoch, claim.hash, accuser.peer_id, 1, claim.t + 5), accused)),
            *(
                (swarm, seal(made, member))
                for swarm, (member, *words) in zip(swarms[2:], said, strict=True)
                for made in (
                    commit(*words, clock.opens_s(phase_of(1, Act.COMMIT))),
                    reveal(*words, 510_000, clock.opens_s(phase_of(1, Act.REVEAL))),
                )
            ),
        ]
        assert all(await asyncio.gather(*(swarm.store(record) for swarm, record in signed)))

        in_anothers_name = replace(claim, accuser=members[0].peer_id)
        body = in_anothers_name.to_body()
        forged = place(in_anothers_name, Envelope(Kind.CLAIM, body, (accused.sign(Kind.CLAIM, body),)).to_bytes())
        assert not await swarms[0].store(forged)

        spans = [receipt(each, accuser, epoch=epoch - 1) for each in (accused, *members)]
        everybody = [swarm.peer_id for swarm in swarms]
        court = Court(rules, Holdings(spans), {epoch: dict.fromkeys(everybody, 2**40)}, anchors=())
        outcomes = [judge(open_cases(*await read(swarm, everybody, epoch)), court, time.time()) for swarm in swarms]
        assert all(each == outcomes[0] for each in outcomes)
        assert outcomes[0].convictions == (Conviction(accused.peer_id, epoch),)
        assert outcomes[0].rulings[0].state is State.UPHELD
