"""The science check, `make science`: what each method learns from Fashion-MNIST in the same time."""
