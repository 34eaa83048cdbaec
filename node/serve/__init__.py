"""What a server does: admit sessions, bound them, hand their steps to the engine."""
