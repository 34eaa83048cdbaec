"""What ``make_vectors.py`` writes: golden vectors of records, of draws, and of signatures at the edges of Ed25519."""
