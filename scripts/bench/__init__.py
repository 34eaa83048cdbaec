"""What the benchmarks share: the model, the swarm of processes, the clients, and how their work is counted."""
