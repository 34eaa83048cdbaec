"""Number the signatures of peers over what is no record, so that none of them counts for another thing.

Records use the number of their kind (``dht.records.Kind``), which is below 128; these begin there. Pure.
"""

from enum import IntEnum


class Domain(IntEnum):
    """Domain types of signatures that never stand in a record."""

    OFFER = 128  # a consumer, over the body of an offer
    ACCEPT = 129  # a provider, over the sha256 of an offer's body
    CHUNK = 130  # a stage, over what it has sent to the next one: the body of a voucher
