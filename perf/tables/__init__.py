"""Benchmarks of sample tables: how long a scan takes, and what a table of many rows costs."""
