"""Remember where peers are, within bounds, and who named them.

p2pd's own DHT is off, so a peer id that stands in a DHT answer has no address: this is where addresses come from.
A peer's own word (its hello, or an announcement that it signed) replaces hearsay, and hearsay never replaces it.
An address is direct, or a circuit: a way over a relay, taken where no direct one leads.
This file does no I/O. It runs on the event loop.
"""

from collections import OrderedDict
from dataclasses import dataclass

MAX_PEERS = 20_000
"""Peers that are remembered; the one not heard of for longest goes first."""

MAX_ADDRESSES = 8
"""Addresses that are remembered of one peer."""

MAX_NAMERS = 4
"""Peers that are remembered as having named one peer."""

CIRCUIT = "/p2p-circuit"
"""How the multiaddr of a way over a relay ends."""


def is_circuit(address: str) -> bool:
    """Say whether an address leads over a relay."""
    return address.endswith(CIRCUIT)


@dataclass(slots=True)
class _Entry:
    addresses: tuple[str, ...] = ()  # multiaddrs without /p2p/
    own_word: bool = False  # True: the peer itself said so
    namers: tuple[str, ...] = ()  # peers that named it, newest first
    others: tuple[str, ...] = ()  # those of its addresses at which someone else was found


class AddressBook:
    """Addresses by peer id."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def _entry(self, peer_id: str) -> _Entry:
        entry = self._entries.setdefault(peer_id, _Entry())
        self._entries.move_to_end(peer_id)
        if len(self._entries) > MAX_PEERS:
            self._entries.popitem(last=False)
        return entry

    def learn(self, peer_id: str, addresses: tuple[str, ...], *, own_word: bool) -> None:
        """Remember where a peer is."""
        entry = self._entry(peer_id)
        if addresses and (own_word or not entry.own_word):
            if set(addresses) != set(entry.addresses):
                entry.others = ()
            entry.addresses, entry.own_word = addresses[:MAX_ADDRESSES], own_word

    def named(self, peer_id: str, by: str) -> None:
        """Remember that ``by`` named a peer, and can be asked where it is."""
        if peer_id == by:
            return
        entry = self._entry(peer_id)
        entry.namers = (by, *(each for each in entry.namers if each != by))[:MAX_NAMERS]

    def addresses(self, peer_id: str) -> tuple[str, ...]:
        """Give what is remembered; empty when nothing is."""
        entry = self._entries.get(peer_id)
        return entry.addresses if entry is not None else ()

    def direct(self, peer_id: str) -> tuple[str, ...]:
        """Give the addresses that lead to it without a relay, as far as we know."""
        entry = self._entries.get(peer_id, _Entry())
        return tuple(each for each in entry.addresses if not is_circuit(each) and each not in entry.others)

    def circuits(self, peer_id: str) -> tuple[str, ...]:
        """Give the ways to it over relays."""
        return tuple(filter(is_circuit, self.addresses(peer_id)))

    def mistook(self, peer_id: str, address: str) -> None:
        """Note that someone else is at an address: one in a private network, which here is another network."""
        entry = self._entries.get(peer_id)
        if entry is not None and address in entry.addresses:
            entry.others = (*entry.others, address)

    def namers(self, peer_id: str) -> tuple[str, ...]:
        """Give the peers that can be asked."""
        entry = self._entries.get(peer_id)
        return entry.namers if entry is not None else ()

    def doubt(self, peer_id: str) -> None:
        """Note that no one answers at a peer's addresses: hearsay may replace them now."""
        entry = self._entries.get(peer_id)
        if entry is not None:
            entry.own_word = False

    def __len__(self) -> int:
        return len(self._entries)
