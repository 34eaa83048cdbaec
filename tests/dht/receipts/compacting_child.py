"""A process that compacts a ledger, one slot a transaction, until it is done or somebody kills it.

Usage: compacting_child.py LEDGER EPOCH_S WINDOW_EPOCHS. In the middle of each transaction it writes a point to stdout.
"""

import os
import sys
from pathlib import Path

from dht.receipts import compaction, receipt_table
from dht.receipts.ledger import Ledger
from dht.rules import Rules

drop_older = receipt_table.drop_older


def main() -> None:
    def telling(*arguments) -> int:
        num = drop_older(*arguments)
        os.write(1, b".")
        return num

    receipt_table.drop_older = telling
    compaction.SLOTS_AT_ONCE = 1
    with Ledger.open(Path(sys.argv[1])) as ledger:
        ledger.compact(Rules(epoch_s=int(sys.argv[2]), window_epochs=int(sys.argv[3])))


if __name__ == "__main__":
    main()
