from dht.membership import book as book_module
from dht.membership.book import MAX_ADDRESSES, MAX_NAMERS, AddressBook

HERE, THERE = ("/ip4/1.1.1.1/tcp/1",), ("/ip4/2.2.2.2/tcp/2",)


def test_a_peers_own_word_replaces_hearsay_and_not_the_reverse():
    book = AddressBook()
    book.learn("peer", HERE, own_word=False)
    assert book.addresses("peer") == HERE
    book.learn("peer", THERE, own_word=True)
    book.learn("peer", HERE, own_word=False)
    assert book.addresses("peer") == THERE
    book.learn("peer", (), own_word=True)
    assert book.addresses("peer") == THERE


def test_when_no_one_answers_there_hearsay_is_believed_again():
    book = AddressBook()
    book.learn("peer", HERE, own_word=True)
    book.doubt("peer")
    book.learn("peer", THERE, own_word=False)
    assert book.addresses("peer") == THERE
    book.doubt("unknown")


def test_namers_are_kept_newest_first_and_few():
    book = AddressBook()
    for number in range(10):
        book.named("peer", f"namer {number}")
    book.named("peer", "namer 8")
    book.named("peer", "peer")
    assert book.namers("peer") == ("namer 8", "namer 9", "namer 7", "namer 6")[:MAX_NAMERS]


def test_an_unknown_peer_has_neither_addresses_nor_namers():
    book = AddressBook()
    assert book.addresses("peer") == ()
    assert book.namers("peer") == ()
    assert len(book) == 0


def test_the_book_is_bounded_and_forgets_who_was_not_heard_of_for_longest(monkeypatch):
    monkeypatch.setattr(book_module, "MAX_PEERS", 3)
    book = AddressBook()
    for peer in "abc":
        book.learn(peer, HERE * 20, own_word=True)
    book.named("a", "b")
    book.learn("d", HERE, own_word=False)
    assert len(book) == 3
    assert book.addresses("b") == ()
    assert len(book.addresses("a")) == MAX_ADDRESSES


def test_circuits_are_told_from_direct_addresses():
    book = AddressBook()
    circuit = "/ip4/3.3.3.3/tcp/3/p2p/relay/p2p-circuit"
    book.learn("peer", (circuit, *HERE), own_word=True)
    assert book.direct("peer") == HERE
    assert book.circuits("peer") == (circuit,)
    assert book.direct("unknown") == book.circuits("unknown") == ()


def test_where_someone_else_was_found_a_peer_is_not_looked_for_until_it_moves():
    book = AddressBook()
    book.mistook("peer", HERE[0])
    book.learn("peer", HERE, own_word=True)
    book.mistook("peer", THERE[0])
    assert book.direct("peer") == HERE
    book.mistook("peer", HERE[0])
    book.learn("peer", HERE, own_word=True)
    assert book.direct("peer") == ()
    book.learn("peer", THERE, own_word=True)
    book.learn("peer", HERE, own_word=True)
    assert book.direct("peer") == HERE
