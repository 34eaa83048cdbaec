"""What ``make_vectors.py`` writes: golden vectors of records, draws and scores, and of signatures at the edges."""
