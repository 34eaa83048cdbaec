"""Our own program as one of another version: its protocol numbers are changed before anything reads them.

Run as a module: ``python -m tests.churn.other_version --hello 2 serve ...``. It is the process's main program.
"""

from __future__ import annotations

import argparse
import sys

import dht.membership.handshake
import node.wire


def other_version(*, hello: int | None = None, session: str | None = None) -> tuple[str, ...]:
    """Return the program for ``NodeProcess`` and ``Fleet.start`` that speaks other versions.

    Args:
        hello: version of the hellos among members; None: ours.
        session: name of the session protocol; None: ours.
    """
    numbers = [] if hello is None else ["--hello", str(hello)]
    return ("tests.churn.other_version", *numbers, *([] if session is None else ["--session", session]))


def main(arguments: list[str]) -> int:
    """Take our own options off the front and run the command behind them."""
    parser = argparse.ArgumentParser(prog="other_version", description=__doc__)
    parser.add_argument("--hello", type=int, default=dht.membership.handshake.HELLO_VERSION)
    parser.add_argument("--session", default=node.wire.PROTOCOL)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of efedllm, with its arguments")
    options = parser.parse_args(arguments)
    dht.membership.handshake.HELLO_VERSION = options.hello
    node.wire.PROTOCOL = options.session
    from node.cli import main as run  # Who imports a number by name must find the changed one.

    return run(options.command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
