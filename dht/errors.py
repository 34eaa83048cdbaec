"""Errors of the dht package.

DhtError
├── LocalError                 our own machine or our own misuse
│   ├── IdentityInUse            the same identity runs elsewhere
│   ├── IdentityDamaged          the identity file cannot be read
│   ├── IdentityNotWritten       the identity file cannot be written
│   ├── WrongPassphrase          an exported identity does not open with it
│   ├── ClockSkew                this machine's clock differs from the swarm's
│   ├── LedgerNotWritten         the ledger cannot be read or written
│   ├── LedgerDamaged            the ledger's file holds what no ledger holds
│   ├── Contradiction            another receipt with the same number is held already
│   └── SeqsSpent                a lane has no numbers left in this epoch
├── BadJoinCode (ValueError)   a join code that a user gave is damaged
├── BadAddress (ValueError)    a multiaddr that a user gave is malformed
├── RemoteError                a peer broke the protocol: close, count, go on
│   ├── BadRecord                bytes that are no canonical value of the expected shape
│   └── ProtocolViolation        a message that the protocol does not allow
└── UnavailableError           timeout, gone, full: try elsewhere or later
    ├── PeerUnreachable          no answer from a peer
    ├── NotAdmitted              the swarm does not let us in
    ├── AddressInUse             a port that we should listen on is taken
    └── DaemonDied               the p2pd process has ended

This file knows nothing of exit codes; it runs in no thread of its own.
"""


class DhtError(Exception):
    """Root of every error that this package raises on purpose."""


class LocalError(DhtError):
    """Our own machine, files, or misuse of this package."""


class IdentityInUse(LocalError):
    """Another running node has this identity."""


class IdentityDamaged(LocalError):
    """The identity file exists but holds no Ed25519 key."""


class IdentityNotWritten(LocalError):
    """The identity file could not be written; the message holds the mend."""


class WrongPassphrase(LocalError):
    """An exported identity is whole, but does not open with the passphrase that was given."""


class ClockSkew(LocalError):
    """The local clock differs from the swarm's by more than records can bear."""


class LedgerNotWritten(LocalError):
    """The ledger could not be opened, read or written; the message holds the mend."""


class LedgerDamaged(LocalError):
    """The ledger's file is damaged and cannot be mended now; the message holds the mend."""


class Contradiction(LocalError):
    """Two receipts with one number differ: somebody has signed both, and the ledger holds the first."""


class SeqsSpent(LocalError):
    """A lane has no sequence numbers left in this epoch; the next receipts need another lane."""


class BadJoinCode(DhtError, ValueError):
    """A join code is damaged; the message is one sentence that ends with the mend."""


class BadAddress(DhtError, ValueError):
    """A multiaddr is malformed; the message is one sentence that ends with the mend."""


class RemoteError(DhtError):
    """A peer sent what the protocol does not allow."""


class BadRecord(RemoteError):
    """Bytes from the network are no canonical value of the expected shape."""


class ProtocolViolation(RemoteError):
    """A peer's message is malformed or out of turn."""


class UnavailableError(DhtError):
    """A peer or a resource is not there now."""


class PeerUnreachable(UnavailableError):
    """A peer does not answer at any address that we know."""


class NotAdmitted(UnavailableError):
    """A peer does not count us, or we it, as a member of the swarm."""


class AddressInUse(UnavailableError):
    """Another program listens on the address that was asked for."""


class DaemonDied(UnavailableError):
    """The p2pd process of this swarm has ended."""
