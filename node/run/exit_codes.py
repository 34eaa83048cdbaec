"""Which exit code a command ends with; the table in docs/commands.md is this one. Pure."""

from __future__ import annotations

from dht import errors as dht_errors
from node import errors

OK = 0
INTERNAL = 1
DISK_FULL = 26
LEDGER_MENDED = 31


# The first class that an error is an instance of decides, so subclasses stand before their bases.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.ModelNotFound, 3),
    (errors.BadBlocks, 4),
    (errors.MissingBlocks, 5),
    (dht_errors.BadJoinCode, 6),
    (dht_errors.BadAddress, 7),
    (dht_errors.PeerUnreachable, 8),
    (dht_errors.NotAdmitted, 9),
    (dht_errors.AddressInUse, 10),
    (errors.ConfigMismatch, 12),
    (errors.DamagedCheckpoint, 11),
    (dht_errors.IdentityInUse, 13),
    (dht_errors.IdentityNotWritten, 14),
    (dht_errors.IdentityDamaged, 15),
    (dht_errors.WrongPassphrase, 29),
    (errors.PromptTooLong, 16),
    (errors.DoesNotFit, 17),
    (errors.UnsupportedFamily, 18),
    (errors.QuantizerMissing, 27),
    (errors.StageLost, 19),
    (errors.Refused, 20),
    (errors.NotRunning, 28),
    (dht_errors.ClockSkew, 21),
    (dht_errors.DaemonDied, 22),
    (dht_errors.LedgerNotWritten, 30),
    (dht_errors.LedgerDamaged, 30),
    (errors.CannotSign, 30),
    (errors.UserError, 23),
    (errors.UnavailableError, 24),
    (dht_errors.UnavailableError, 24),
    (errors.RemoteError, 25),
    (dht_errors.RemoteError, 25),
)


def exit_code(error: BaseException) -> int:
    """Return the exit code for ``error``: 1 for what nobody foresaw."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return INTERNAL
