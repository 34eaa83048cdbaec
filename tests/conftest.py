"""What every test shares: one compute thread, no way to a model hub, and Ctrl-C that works."""

import os
import signal

# Before transformers and huggingface_hub are imported: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# A shell starts what runs in the background with SIGINT ignored, and processes started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Shared machines stall for longer than any deadline; a failure must repeat on the next run.
settings.register_profile("efedllm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("efedllm")
