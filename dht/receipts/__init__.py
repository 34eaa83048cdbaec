"""What is done with receipts: keep, publish, read, add up, prove lies, sum up.

publisher       one's own to the DHT              reader      anyone's from the DHT
checking        many signatures, in processes     tally       who did how much
equivocations   proofs, found and published       snapshots   a window of receipts from one peer
"""
