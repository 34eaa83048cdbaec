"""Who belongs to the swarm, and where members are.

handshake  proves to each other that both know the swarm's secret: bytes in, bytes out, no I/O
book       remembers where peers are, within bounds
members    runs both over streams: admits peers, serves their questions
"""
