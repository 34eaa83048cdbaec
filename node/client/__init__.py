"""What a client does: plan a route, keep a session, look like a transformers model."""
