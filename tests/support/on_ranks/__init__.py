"""What the ranks of some tests do."""
