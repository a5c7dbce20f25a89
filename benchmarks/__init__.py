"""How fast the library is beside a hand-written loop and beside its peers: `python -m benchmarks`."""
