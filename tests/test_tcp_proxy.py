"""A proxy carries bytes as a link of the given conditions would, and leaves nothing behind."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.churn.way import MAX_QUEUED_BYTES, PIECE_BYTES, Conditions
from tests.tcp_proxy import HOST, TcpProxy, hold_port

PATIENCE_S = 5.0
LATE_S = 0.5
"""What a busy machine may be late."""


class Echo:
    """A server that sends back what it gets; with ``is_deaf`` it takes connections and reads nothing."""

    def __init__(self, *, is_deaf: bool = False) -> None:
        self._is_deaf = is_deaf
        self._server = socket.create_server((HOST, 0))
        self.port = self._server.getsockname()[1]
        self._accepted: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._server.accept()
                self._accepted.append(accepted)
                if not self._is_deaf:
                    self._threads.append(threading.Thread(target=self._echo, args=(accepted,)))
                    self._threads[-1].start()

    def _echo(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := accepted.recv(PIECE_BYTES):
                accepted.sendall(piece)
            accepted.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self._server, *self._accepted):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._server, *self._accepted):
            each.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with contextlib.closing(Echo()) as server:
        yield server


@pytest.fixture
def proxy(echo: Echo) -> Iterator[TcpProxy]:
    with TcpProxy(echo.port) as through:
        yield through


@contextlib.contextmanager
def dialed(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, proxy.port), PATIENCE_S) as dialer:
        dialer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield dialer


def received(dialer: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (piece := dialer.recv(size - len(got))):
        got += piece
    return bytes(got)


def asked_s(dialer: socket.socket, question: bytes) -> float:
    """Return how long a question takes to come back."""
    began_s = time.monotonic()
    dialer.sendall(question)
    assert received(dialer, len(question)) == question
    return time.monotonic() - began_s


def is_cut(dialer: socket.socket) -> bool:
    try:
        return dialer.recv(1) == b""
    except ConnectionError:
        return True


def waits_until(is_so, timeout_s: float = PATIENCE_S) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return is_so()


def test_what_is_sent_arrives_whole_and_is_counted(proxy: TcpProxy):
    text = bytes(range(256)) * 4000
    with dialed(proxy) as dialer:
        sending = threading.Thread(target=dialer.sendall, args=(text,))
        sending.start()
        assert received(dialer, len(text)) == text
        sending.join()
        assert waits_until(lambda: proxy.num_bytes == (len(text), len(text)))
        assert proxy.num_queued_bytes == 0


def test_the_end_of_one_direction_leaves_the_other_open(proxy: TcpProxy):
    with dialed(proxy) as dialer:
        dialer.sendall(b"last")
        dialer.shutdown(socket.SHUT_WR)
        assert received(dialer, 4) == b"last"
        assert dialer.recv(1) == b""
    assert waits_until(lambda: proxy.num_connections == 0)


def test_a_delay_is_half_a_round_trip_and_keeps_the_order(proxy: TcpProxy):
    with dialed(proxy) as dialer:
        asked_s(dialer, b"warm")
        proxy.set(Conditions(delay_s=0.05))
        assert 0.1 <= min(asked_s(dialer, b"?") for _ in range(3)) < 0.1 + LATE_S
        pieces = [bytes([number]) * 3 for number in range(50)]
        for piece in pieces:
            dialer.sendall(piece)
        assert received(dialer, 150) == b"".join(pieces)


def test_what_is_on_the_way_is_not_overtaken_when_the_link_gets_faster(proxy: TcpProxy):
    proxy.set(Conditions(delay_s=0.2))
    with dialed(proxy) as dialer:
        dialer.sendall(b"first")
        assert waits_until(lambda: proxy.num_queued_bytes == 5)
        proxy.set(Conditions())
        dialer.sendall(b"second")
        assert received(dialer, 11) == b"firstsecond"


def test_a_delayed_link_carries_many_pieces_at_once(proxy: TcpProxy):
    proxy.set(Conditions(delay_s=0.1))
    size = 40 * PIECE_BYTES
    with dialed(proxy) as dialer:
        began_s = time.monotonic()
        sending = threading.Thread(target=dialer.sendall, args=(bytes(size),))
        sending.start()
        assert len(received(dialer, size)) == size
        sending.join()
    assert time.monotonic() - began_s < 2.0  # One piece after the other would take eight.


def test_a_slow_link_carries_its_rate(proxy: TcpProxy):
    proxy.set(Conditions(bytes_per_s=20_000))
    with dialed(proxy) as dialer:
        assert 0.48 <= asked_s(dialer, bytes(10_000)) < 0.6 + 2 * LATE_S


def test_dropped_bytes_vanish_and_the_connection_stays_open_until_the_link_is_good_again(proxy: TcpProxy):
    with dialed(proxy) as dialer:
        asked_s(dialer, b"before")
        proxy.set(Conditions(drops=True))
        dialer.sendall(b"lost")
        dialer.settimeout(0.3)
        with pytest.raises(TimeoutError):
            dialer.recv(1)
        dialer.settimeout(PATIENCE_S)
        proxy.set(Conditions())
        assert is_cut(dialer)
    with dialed(proxy) as dialer:
        asked_s(dialer, b"after")


def test_a_connection_that_lost_nothing_outlives_a_link_that_dropped(proxy: TcpProxy):
    with dialed(proxy) as dialer:
        asked_s(dialer, b"before")
        proxy.set(Conditions(drops=True))
        proxy.set(Conditions())
        asked_s(dialer, b"after")


def test_where_bytes_vanish_so_does_the_news_that_a_side_has_gone(echo: Echo, proxy: TcpProxy):
    with dialed(proxy) as dialer:
        asked_s(dialer, b"before")
        proxy.set(Conditions(drops=True))
        echo.close()
        dialer.settimeout(0.3)
        with pytest.raises(TimeoutError):
            dialer.recv(1)


def test_corruption_flips_one_bit_of_one_piece_each_way(proxy: TcpProxy):
    with dialed(proxy) as dialer:
        asked_s(dialer, b"before")
        proxy.corrupt()
        dialer.sendall(bytes(3))  # Once on the way there and once on the way back: the same bit.
        assert received(dialer, 3) == bytes(3)
        asked_s(dialer, b"after")


def test_corruption_is_seen_by_who_reads(proxy: TcpProxy):
    with contextlib.closing(Echo(is_deaf=True)) as deaf, TcpProxy(deaf.port) as there, dialed(there) as dialer:
        assert waits_until(lambda: there.num_connections == 1 and len(deaf._accepted) == 1)
        there.corrupt()
        dialer.sendall(bytes(5))
        deaf._accepted[0].settimeout(PATIENCE_S)
        assert received(deaf._accepted[0], 5) == b"\0\0\x10\0\0"


def test_a_link_that_refuses_cuts_what_is_open_and_its_port_takes_nobody_until_it_is_good_again(proxy: TcpProxy):
    with dialed(proxy) as dialer:
        asked_s(dialer, b"before")
        proxy.set(Conditions(refuses=True))
        assert is_cut(dialer)
    with pytest.raises(ConnectionRefusedError), dialed(proxy):
        pass
    proxy.set(Conditions())
    with dialed(proxy) as dialer:
        asked_s(dialer, b"after")


def test_a_link_may_be_bad_for_one_dialer_alone(echo: Echo):
    names: dict[int, str] = {}
    with (
        TcpProxy(echo.port, names.get) as proxy,
        socket.socket() as named,
        dialed(proxy) as other,
    ):
        named.bind((HOST, 0))
        names[named.getsockname()[1]] = "named"
        named.settimeout(PATIENCE_S)
        named.connect((HOST, proxy.port))
        asked_s(named, b"before")
        proxy.set(Conditions(), {"named": Conditions(refuses=True)})
        assert is_cut(named)
        asked_s(other, b"after")


def test_a_dialer_is_cut_when_nobody_listens_behind_the_proxy(proxy: TcpProxy, echo: Echo):
    echo.close()
    try:
        with dialed(proxy) as dialer:
            assert is_cut(dialer)
    except ConnectionResetError:
        pass  # So soon that connecting fails already.


def test_memory_is_bounded_when_the_target_does_not_read():
    size = 8 * MAX_QUEUED_BYTES
    with contextlib.closing(Echo(is_deaf=True)) as deaf, TcpProxy(deaf.port) as proxy, dialed(proxy) as dialer:
        dialer.settimeout(0.5)
        with pytest.raises(TimeoutError):
            dialer.sendall(bytes(size))
        assert 0 < proxy.num_queued_bytes < MAX_QUEUED_BYTES + PIECE_BYTES


def test_closing_ends_connections_port_and_thread(echo: Echo):
    before = threading.active_count()
    proxy = TcpProxy(echo.port)
    with dialed(proxy) as dialer:
        asked_s(dialer, b"before")
        proxy.close()
        proxy.close()
        assert is_cut(dialer)
    with pytest.raises(ConnectionRefusedError), dialed(proxy):
        pass
    echo.close()
    assert waits_until(lambda: threading.active_count() <= before)


def test_a_held_port_is_given_to_nobody_else_and_can_be_listened_at():
    with hold_port() as held:
        port = held.getsockname()[1]
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((HOST, port))
        with socket.create_server((HOST, port)):
            pass
