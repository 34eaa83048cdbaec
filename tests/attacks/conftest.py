"""What every attack shares: the package silences hivemind's import notice, so it is imported before hivemind."""

import dht.validation  # noqa: F401
