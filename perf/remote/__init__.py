"""How fast the loader is on images behind a network: `python -m perf.remote`.

`server` serves a folder with a delay, a rate limit and faults; the tests use it too."""
