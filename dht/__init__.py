"""What the network agrees on: identities, records, the DHT, membership and streams between peers.

Nothing here knows of models or tensors. Importing the package says one thing to Python: hivemind compiles TorchScript
when it is imported, which torch 2.13 announces as deprecated, and that notice concerns neither us nor our users.
"""

import warnings

warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
