"""What ``make_vectors.py`` writes: golden vectors of records, of signatures at the edges of Ed25519, of scores."""
