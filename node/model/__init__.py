"""What a machine computes: checkpoints, spans, caches; no socket and no asyncio."""
