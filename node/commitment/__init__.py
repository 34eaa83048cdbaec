"""What stages and clients commit to of what they have sent and taken: chunks, their hashes, and who sent what."""
