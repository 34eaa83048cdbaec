"""What a donor is told of a peer: a newcomer's first day, a liar's last, a slandered node's week, and others."""

import json

from dht.equivocation import find_equivocations
from dht.ident import Affiliation
from dht.identity import Identity
from dht.records import Envelope, seal
from dht.reputation import DEFAULT_SCORE_RULES, Conviction, OpenFail, Rejection, contributions, score, why
from dht.standing.board import Standings
from dht.standing.gathering import evidence_of
from dht.standing.proofs import Case, Judged, Proofs
from dht.standing.ranks import Rank
from dht.standing.workbook import Workbook
from dht.work import WorkKind
from node.run.score_words import as_json, as_lines, story_of
from tests.dht.samples import EPOCH, EPOCH_BEGAN, receipt

ANCHOR, GOOD, OTHER, PEER, CLIENT, ACCUSER = (Identity.ephemeral() for _ in range(6))
UNIT = DEFAULT_SCORE_RULES.unit_work
EPOCH_S = 21600
DAY = 4  # epochs

GRADUATION = (
    "From 5% on it is established. What helps: work for peers that are trusted themselves, and audits that find "
    "nothing wrong. Both come by themselves as long as the server runs and does its work."
)
NO_WORK = (  # One conviction leaves enough when 4 V <= log2(0.8 * 8), which is 70 epochs after it: 17.4 days.
    "It gets no work, and little of the trust that it was given is passed on. If nothing else is found, it may get "
    "work again in 16 days."
)
CONVICTION = (
    "It was convicted of false work 24 hours ago (epoch 79996): that counts 98% now, and half as much every 30 days."
)
DOUBT = (
    "1 peer found fault with its work, and that is not decided: until then their own trust in it does not count, "
    "and nothing else changes."
)


def work(provider, consumer, units, *, ago=0):
    epoch, amount = EPOCH - ago, units * UNIT // 4
    began = EPOCH_BEGAN - ago * EPOCH_S
    return receipt(
        provider, consumer, epoch=epoch, amount=amount, work=4 * amount, t_first=began, t_last=began + 1000,
        work_kind=WorkKind.DECODE,
    )  # fmt: skip


SWARM = [work(GOOD, ANCHOR, 20), work(OTHER, ANCHOR, 20)]


def told(receipts, *, judged=Judged(), proofs=Proofs(), peer=PEER):  # noqa: B008 - they hold nothing
    book, anchors = Workbook(receipts), (ANCHOR.peer_id,)
    evidence = evidence_of(book, proofs, judged, EPOCH)
    scores = score(evidence, anchors, EPOCH, DEFAULT_SCORE_RULES)
    standings = Standings(scores, evidence, proofs, judged, {}, contributions(scores, evidence))
    explanation = why(standings.scores, standings.evidence, peer.peer_id)
    return story_of(peer.peer_id, standings, EPOCH_S, explanation)


def lines(story):
    json.dumps(as_json(story))
    assert as_lines(story, tells_why=False) == as_lines(story, tells_why=True)[: len(as_lines(story, tells_why=False))]
    return as_lines(story, tells_why=True)


def test_a_newcomers_first_day():
    assert lines(told([*SWARM, work(PEER, CLIENT, 1)])) == [
        f"{PEER.peer_id}: a newcomer.",
        "It gets work where fewer than three established servers hold its blocks; elsewhere they are asked.",
        "",
        "In the last 14 days it did 4,096 block-tokens for 1 peer and took 0 block-tokens, by what both sides signed.",
        f"  for {CLIENT.peer_id}: 4,096 block-tokens",
        "Where more is asked for than servers can do, its own requests are served like whoever is new.",
        "The trust that reaches it from the anchors is 0% of what is typical in this swarm.",
        GRADUATION,
        "No audit of its work is known.",
        "Nothing is held against it.",
    ]


def test_a_server_that_is_linked_with_a_client_is_told_whose_work_counts_with_its_own():
    affiliation = Affiliation(PEER.peer_id, CLIENT.peer_id, EPOCH)
    story = told([*SWARM, work(PEER, CLIENT, 9), work(PEER, ANCHOR, 1)], proofs=Proofs(affiliations=(affiliation,)))
    place = "Where more is asked for than servers can do, its own requests are served before whoever is new."
    said = lines(story)
    at = said.index(place)
    assert said[at + 1 : at + 3] == [
        "For that counts what it and 1 peer of its owner gave to others, and took from others:",
        f"  {CLIENT.peer_id}",
    ]
    assert as_json(story)["affiliates"] == [CLIENT.peer_id]
    assert as_json(told(SWARM))["affiliates"] == []


def test_an_expelled_liars_last_day():
    judged = Judged(
        convictions=(Conviction(PEER.peer_id, EPOCH - DAY),),
        cases=(Case(ACCUSER.peer_id, PEER.peer_id, EPOCH - DAY, "upheld", "All 7 members found the work false."),),
    )
    story = told([*SWARM, work(PEER, ANCHOR, 20)], judged=judged)
    assert story.rank is Rank.CONVICTED
    said = lines(story)
    assert said[:2] == [
        f"{PEER.peer_id}: convicted of false work, score 0.04 of 1.",
        NO_WORK,
    ]
    assert said[-3:] == [
        "No audit of its work is known.",
        CONVICTION,
        f"  A claim by {ACCUSER.peer_id}, 24 hours ago (epoch 79996): upheld. All 7 members found the work false.",
    ]


def test_a_slandered_honest_nodes_week():
    cases = tuple(
        Case(ACCUSER.peer_id, PEER.peer_id, EPOCH - ago * DAY, "rejected", "The committee found the work right.")
        for ago in (6, 4)
    )
    judged = Judged(
        rejections=tuple(Rejection(ACCUSER.peer_id, case.epoch) for case in cases),
        open_fails=(OpenFail(CLIENT.peer_id, PEER.peer_id),),
        cases=(*cases, Case(CLIENT.peer_id, PEER.peer_id, EPOCH, "open", "")),
    )
    said = lines(told([*SWARM, work(PEER, ANCHOR, 20)], judged=judged))
    assert said[:2] == [
        f"{PEER.peer_id}: established, score 0.80 of 1.",
        "It gets work like all established servers: who is fastest is asked first.",
    ]
    assert said[-7:] == [
        "No audit of its work is known.",
        f"  A claim by {CLIENT.peer_id}, in this epoch (80000): open.",
        f"  A claim by {ACCUSER.peer_id}, 4 days ago (epoch 79984): rejected. The committee found the work right.",
        f"  A claim by {ACCUSER.peer_id}, 6 days ago (epoch 79976): rejected. The committee found the work right.",
        "2 claims were found false. That costs it nothing: not its score, nor any work; it costs whoever accused.",
        DOUBT,
        f"  {CLIENT.peer_id}",
    ]
    accuser = lines(told([*SWARM, work(PEER, ANCHOR, 20)], judged=judged, peer=ACCUSER))
    assert accuser[-1] == (
        "2 claims were found false: its voice counts less where others are judged, and its work counts as before."
    )
    assert "It accused others 2 times:" in accuser


def test_whoever_signed_two_receipts_is_told_of_as_that_and_nothing_else():
    one, other = (
        Envelope.from_bytes(seal(receipt(PEER, CLIENT, bytes_in=size), PEER, CLIENT).envelope) for size in (1, 2)
    )
    proofs = Proofs(equivocations=tuple(find_equivocations([one, other])))
    said = lines(told([*SWARM, work(PEER, ANCHOR, 20)], proofs=proofs))
    assert said[:3] == [
        f"{PEER.peer_id}: caught with a lie.",
        "It signed two receipts that contradict each other (epoch 80000): the proof is on the DHT.",
        "Nobody can make such a proof up. It gets no work, and its own receipts give nobody trust.",
    ]


def test_where_nobody_is_trusted_yet_that_is_said_of_everybody():
    story = told([work(PEER, CLIENT, 5)])
    assert lines(story)[:2] == [
        f"{PEER.peer_id}: a newcomer.",
        "Nobody in this swarm is trusted yet, so everybody is a newcomer, and everybody gets work.",
    ]
    assert as_json(story)["score"] is None
    assert as_json(told(SWARM, peer=GOOD))["score"] == 0.8


def test_long_lists_are_cut_and_counted():
    clients = [Identity.ephemeral() for _ in range(12)]
    said = lines(told([*SWARM, *(work(PEER, client, 1) for client in clients)]))
    assert "  and 2 more peers" in said
    assert sum(line.startswith("  for ") for line in said) == 10


def test_a_consumer_in_debt_hears_that_others_come_first():
    assert any("served after whoever is new" in line for line in lines(told([*SWARM, work(GOOD, PEER, 50)])))
    assert any("served before whoever is new" in line for line in lines(told([*SWARM, work(PEER, ANCHOR, 50)])))
