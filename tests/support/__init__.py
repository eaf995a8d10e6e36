"""Helpers that several tests use: small data, tiny runs, ranks, hosts, a browser."""
