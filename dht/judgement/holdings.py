"""Who holds which blocks, as far as receipts show: whoever was signed for having worked on them. Pure."""

from collections import defaultdict
from collections.abc import Iterable

from dht.work import Receipt, WorkKind


class Holdings:
    """Spans that providers have worked on, by model, provider and epoch.

    Args:
        receipts: Both signatures checked, in any order; superseded ones do no harm.
    """

    def __init__(self, receipts: Iterable[Receipt] = ()) -> None:
        self._spans: dict[bytes, dict[str, set[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(set))
        for receipt in receipts:
            if receipt.amount and receipt.work_kind is not WorkKind.RELAY:
                span = (receipt.start, receipt.end, receipt.epoch)
                self._spans[receipt.manifest][receipt.provider].add(span)

    def holders(self, manifest: bytes, start: int, end: int, epochs: range) -> frozenset[str]:
        """Return the peers that have worked on every block of a span in some of these epochs.

        Args:
            manifest: Of the model.
            start: First block.
            end: One past the last.
            epochs: In which the work is counted.
        """
        providers = self._spans.get(manifest, {})
        return frozenset(
            provider
            for provider, spans in providers.items()
            if _covers(sorted((first, last) for first, last, epoch in spans if epoch in epochs), start, end)
        )


def _covers(spans: list[tuple[int, int]], start: int, end: int) -> bool:
    for first, last in spans:
        if first <= start:
            start = max(start, last)
    return start >= end
