"""Counts mixed into the softmax: `count_mixture.py` says how, the other modules what is counted."""
