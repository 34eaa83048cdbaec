"""What a CALIBRATION record says of a calibration file: its thresholds for whole chunks, in whole millionths.

Rows are for readers that do not have the file; who judges takes the file. A length of spans has one row: that of the
span that errs most. Where a record has no room for all, the shortest lengths are left out first, of every kind of
weights and codec alike: the longer one's row counts for them. Pure.
"""

from __future__ import annotations

from dht.calibration import MAX_RATIO_MILLI, MAX_THRESHOLDS, Threshold
from dht.work import MAX_ERROR_PPM
from node.check.calibration import SIZES, Calibration, HonestError

_PPM = 10**6
_MILLI = 1000


def rows_of(calibration: Calibration) -> tuple[Threshold, ...]:
    """Return the rows of a record, in its order; at least one, and no more than it may have."""
    by_kind = [_rows_of_kind(calibration, honest) for honest in calibration.honest]
    while sum(map(len, by_kind)) > MAX_THRESHOLDS:
        shortest = min(rows[0].num_blocks for rows in by_kind if len(rows) > 1)
        by_kind = [rows[1:] if len(rows) > 1 and rows[0].num_blocks == shortest else rows for rows in by_kind]
    return tuple(sorted(row for rows in by_kind for row in rows))


def _rows_of_kind(calibration: Calibration, honest: HonestError) -> list[Threshold]:
    """Return a row for each calibrated length, ascending."""
    return [_row(calibration, honest, num_blocks) for num_blocks, _ in honest.tails]


def _row(calibration: Calibration, honest: HonestError, num_blocks: int) -> Threshold:
    _, start, end = max((mean, start, end) for start, end, mean in honest.means if end - start == num_blocks)
    standard = calibration.standard(honest.held_in, honest.codec, start, end)
    median, upper, largest = standard.limits(SIZES[-1])
    fails = [_ppm(limit.fails) for limit in (median, upper, largest)]
    return Threshold(
        weights=honest.held_in,
        codec=honest.codec,
        num_blocks=num_blocks,
        median_pass_ppm=min(_ppm(median.passes), fails[0]),
        median_fail_ppm=fails[0],
        upper_fail_ppm=max(fails[:2]),
        max_fail_ppm=max(fails),
        mean_ppm=_ppm(standard.mean),
        pooled_ratio_milli=min(MAX_RATIO_MILLI, round(min(MAX_RATIO_MILLI, standard.pooled_limit) * _MILLI)),
    )


def _ppm(error: float) -> int:
    return round(min(error, MAX_ERROR_PPM / _PPM) * _PPM)
