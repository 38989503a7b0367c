"""What the entry points share: pictures in, probabilities out.

Importing this package loads neither torch nor matplotlib.
"""
