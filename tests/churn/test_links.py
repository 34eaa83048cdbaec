"""What a connection is like follows from the links of both its ends."""

import contextlib
import socket
import threading

import pytest

from tests.churn.links import Link, Links, between
from tests.churn.way import GOOD, Conditions
from tests.tcp_proxy import HOST


@pytest.fixture
def links():
    with Links() as made:
        yield made


def test_the_worse_of_both_ends_counts(links: Links):
    slow, far = links.open(), links.open()
    links.change([slow], bytes_per_s=1000.0)
    links.change([far], delay_s=0.1)
    assert between(slow, far) == between(far, slow) == Conditions(delay_s=0.1, bytes_per_s=1000.0)
    assert between(far, None) == Conditions(delay_s=0.1)


@pytest.mark.parametrize(("is_silent", "cut"), [(False, Conditions(refuses=True)), (True, Conditions(drops=True))])
def test_a_partition_parts_the_named_ones_from_all_others_and_healing_ends_it(links: Links, is_silent, cut):
    one, two, other = (links.open() for _ in range(3))
    links.partition([one, two], is_silent=is_silent)
    assert between(one, two) == between(two, one) == GOOD
    assert between(one, other) == between(other, one) == between(one, None) == cut
    assert between(other, None) == GOOD
    links.heal([one])
    assert between(one, other) == GOOD
    assert between(one, two) == cut
    links.heal([two])
    assert between(one, two) == GOOD


def test_two_partitions_are_two_islands(links: Links):
    one, two = links.open(), links.open()
    links.partition([one])
    links.partition([two])
    assert between(one, two).refuses


def test_a_node_that_does_not_run_takes_nobody(links: Links):
    link = links.open()
    with socket.create_server((HOST, link.listen_port)):
        link.is_up = False
        links.apply()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, link.proxy.port))
        link.is_up = True
        links.apply()
        socket.create_connection((HOST, link.proxy.port)).close()


def test_whoever_dials_from_where_a_node_listens_is_that_node(links: Links):
    dialer, target = links.open(), links.open()
    links.partition([dialer])
    assert is_let_through(target, from_port=None)
    assert not is_let_through(target, from_port=dialer.listen_port)


def is_let_through(target: Link, from_port: int | None) -> bool:
    """Dial a node, and say whether what it says arrives."""
    with socket.create_server((HOST, target.listen_port)) as node, socket.socket() as dialing:
        thread = threading.Thread(target=_say_hello, args=(node,))
        thread.start()
        try:
            dialing.settimeout(2.0)
            if from_port is not None:
                dialing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                dialing.bind((HOST, from_port))
            dialing.connect((HOST, target.proxy.port))
            return dialing.recv(5) == b"hello"
        except ConnectionError:
            return False
        finally:
            node.shutdown(socket.SHUT_RDWR)
            thread.join()


def _say_hello(node: socket.socket) -> None:
    with contextlib.suppress(OSError), node.accept()[0] as accepted:
        accepted.sendall(b"hello")
