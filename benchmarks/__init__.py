"""What Agent Shell costs, beside its peers and the machine's limits. `make bench` runs it; README.md explains it."""
