"""What each command of ``efedllm`` does."""
