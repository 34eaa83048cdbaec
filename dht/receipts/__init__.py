"""What is done with receipts: keep, publish, read, add up, prove lies, sum up.

publisher       one's own to the DHT              reader      anyone's from the DHT
checking        many signatures, in processes     totals      who did how much
ledger          one's own, kept on the disk       compaction  what it may let go of
equivocations   proofs, found and published       snapshots   a window of receipts from one peer
"""
