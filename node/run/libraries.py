"""Keep libraries from talking over a command: stderr holds our own sentences, and one line when a command fails.

Only commands do this; whoever imports the package keeps transformers' log and bars as they have set them. Start-up of
a command, on its main thread.
"""

from __future__ import annotations

import logging

from transformers.utils import logging as transformers_logging


def silence_libraries() -> None:
    """Turn off transformers' progress bars, and its log unless ``--verbose`` asked for one.

    Its import sets its log's level anew, so this comes after it.
    """
    transformers_logging.disable_progress_bar()
    if not logging.getLogger().isEnabledFor(logging.INFO):
        transformers_logging.set_verbosity(logging.CRITICAL)
