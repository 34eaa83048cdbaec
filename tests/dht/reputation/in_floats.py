"""The formula of docs/trust.md once more, in floats and matrices as lists, by another way than the code's.

Only for evidence without successions. Nothing of ``dht.reputation`` is used but the names of fields.
"""

EPSILON = 1e-7
"""Floats and Q40 agree to so much."""


def half(age, half_life):
    return 0.5 ** (age / half_life)


def in_floats(evidence, anchors, epoch):
    """Return F, V, W and pen by peer, and the values that w may have: two where half of the flow is reached exactly."""
    names = set(anchors) | set(evidence.equivocators)
    for entries in (evidence.works, evidence.passes):
        names |= {name for entry in entries for name in entry[:2]}
    names |= {entry[0] for entry in (*evidence.convictions, *evidence.rejections)}
    names = sorted(names)
    place = {name: number for number, name in enumerate(names)}
    n = len(names)

    def total(entries, half_life):
        sums = [0.0] * n
        for name, at in entries:
            if 0 <= epoch - at < 360:
                sums[place[name]] += half(epoch - at, half_life)
        return sums

    v, w_rejected = total(evidence.convictions, 120), total(evidence.rejections, 56)
    pen = [0.0 if name in evidence.equivocators else 2 ** (-4 * v[place[name]]) for name in names]
    work = [[0.0] * n for _ in names]
    passed = [[0.0] * n for _ in names]
    for consumer, provider, at, done in evidence.works:
        if 0 <= epoch - at < 56:
            work[place[consumer]][place[provider]] += done / 4096 * half(epoch - at, 28)
    for auditor, provider, at in {tuple(entry) for entry in evidence.passes}:
        if 0 <= epoch - at < 56:
            passed[place[auditor]][place[provider]] += half(epoch - at, 28)
    matrix = [[0.0] * n for _ in names]
    for i in range(n):
        row = [min(60, work[i][j]) + 5 * min(3, passed[i][j]) if i != j else 0.0 for j in range(n)]
        for accuser, accused in evidence.open_fails:
            if place.get(accuser) == i and accused in place:
                row[place[accused]] = 0.0
        row = [credit * pen[j] for j, credit in enumerate(row)]
        if sum(row) > 0:
            matrix[i] = [pen[i] * min(credit / sum(row), 0.1) for credit in row]
        rest = 1 - sum(matrix[i])
        for anchor in anchors:
            matrix[i][place[anchor]] += rest / len(anchors)
    state = [1 / len(anchors) if name in anchors else 0.0 for name in names]
    flow = [0.0] * n
    for hop in range(5):
        flow = [f + 0.3 * 0.7**hop * s for f, s in zip(flow, state, strict=True)]
        state = [sum(state[i] * matrix[i][j] for i in range(n)) for j in range(n)]
    others = [flow[place[name]] for name in names if name not in anchors]
    found = {}
    for name in names:
        i = place[name]
        found[name] = {
            "flow": flow[i], "convictions": v[i], "rejections": w_rejected[i], "penalty": pen[i],
        }  # fmt: skip
    return found, {_median(others, 0.5 - EPSILON), _median(others, 0.5 + EPSILON)}


def score_of(fields, w):
    """Return score and credibility."""
    flow = fields["flow"]
    score = fields["penalty"] * flow / (flow + w / 4) if flow > 0 else 0.0
    return score, score * 2 ** -fields["rejections"]


def _median(flows, share):
    above = 0.0
    for flow in sorted(flows, reverse=True):
        above += flow
        if above >= share * sum(flows):
            return flow
    return 0.0
