"""What the simulation of placement is made of."""
