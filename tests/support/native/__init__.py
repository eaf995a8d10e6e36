"""Images with other channels and depth than 8-bit RGB, for tests."""
