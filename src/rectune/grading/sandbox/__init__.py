"""A program of its own (`python -I .../sandbox`): runs a candidate's code against tests. See `__main__`."""
