"""Evidence that hypothesis draws: small swarms in which anything may happen, and peers that everybody works for."""

from hypothesis import strategies as st

from dht.reputation import Conviction, Evidence, OpenFail, Pass, Rejection, Succeeded, Work

EPOCH = 100
"""Scores are computed as of its end."""

PEERS = ("a", "b", "c", "d", "e", "f", "g", "h")
ANCHORS = ("a", "b")

peers = st.sampled_from(PEERS)
epochs = st.integers(EPOCH - 70, EPOCH + 3)
works = st.builds(Work, peers, peers, epochs, st.integers(0, 4096 * 40))
passes = st.builds(Pass, peers, peers, epochs)
convictions = st.builds(Conviction, peers, epochs)
rejections = st.builds(Rejection, peers, epochs)
fails = st.builds(OpenFail, peers, peers)
successions = st.builds(Succeeded, peers, st.sampled_from((*PEERS, "new", "newer")), epochs).filter(
    lambda drawn: drawn.old != drawn.new
)


def several(entries, most):
    return st.lists(entries, max_size=most).map(tuple)


without_successions = st.builds(
    Evidence,
    works=several(works, 24),
    passes=several(passes, 8),
    convictions=several(convictions, 4),
    rejections=several(rejections, 4),
    open_fails=several(fails, 3),
    equivocators=st.frozensets(st.sampled_from(PEERS[2:]), max_size=1),
)
evidence = st.builds(
    lambda rest, named: Evidence(
        rest.works, rest.passes, rest.convictions, rest.rejections, rest.open_fails, rest.equivocators, named
    ),
    without_successions,
    several(successions, 3),
)


def everyone_works_for_everyone(names=PEERS, epoch=EPOCH, work=4096 * 10):
    """Honest traffic: each has done as much for each."""
    return tuple(
        Work(consumer, provider, epoch, work) for consumer in names for provider in names if consumer != provider
    )
