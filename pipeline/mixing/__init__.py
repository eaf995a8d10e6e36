"""Several datasets as one, and images that come more or less often than once an epoch.

`joint` makes one table of several, `mixture` the rows of an epoch by data.weights and data.balance, and `splits` checks
that training and test images go together.
"""
