"""The check of work: whether what a server gave is what the declared weights give, and the evidence that it is not.

It computes; it knows no peer, no socket and no clock.
"""
