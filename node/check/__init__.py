"""The check of work: is what a server sent what the declared weights give? Computes; knows no peer and no network."""
