"""How fast the loader is on images behind a network: `python -m perf.remote`."""
