"""Whether work was done right, and the evidence that it was not. Pure: bytes in and out, no socket, no clock."""
