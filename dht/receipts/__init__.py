"""Receipts of one node and of the swarm: kept, published, read."""
