"""Take one turn of a duty that a node has for as long as it runs, so that a turn that fails is not the last one.

What peers, disks and networks do is expected, and said in one line. Anything else is a defect of this program: it is
logged with its traceback, and the duty goes on as well, because a node whose records are no longer cared for looks like
one that works. Only a p2pd that has ended ends a duty; the node then says so itself. This file does not know what the
duties are, nor when their turns come. It runs on the event loop.
"""

import logging
from collections.abc import Awaitable

from dht.errors import DaemonDied, DhtError

logger = logging.getLogger(__name__)


async def take_turn(turn: Awaitable[object], duty: str, level: int = logging.WARNING) -> bool:
    """Take a turn; say whether there is any point in another one.

    Args:
        turn: What is to be done now.
        duty: What it is, in a few words for people: "publishing receipts".
        level: At which level of the log failures are told that are nobody's defect.
    """
    try:
        await turn
    except DaemonDied:
        return False
    except (DhtError, TimeoutError, OSError) as error:
        logger.log(level, "%s has failed and is tried again later: %s", duty, str(error) or type(error).__name__)
    except Exception:
        logger.exception(
            "%s has failed by a defect of this program, which is tried again later; please report it", duty
        )
    return True
