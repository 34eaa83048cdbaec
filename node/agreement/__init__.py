"""What a client and a stage agree on in a session, count in it and sign. Pure: bytes in and out, time passed in."""
