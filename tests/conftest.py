"""What every test shares: one compute thread, and no way to a model hub."""

import os

# Before transformers and huggingface_hub are imported: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# Shared machines stall for longer than any deadline; a failure must repeat on the next run.
settings.register_profile("efedllm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("efedllm")
