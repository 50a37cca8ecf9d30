"""Whether this machine's installation computes what it should: `nanonet check`.

Not here: the cases (nanonet.testing), and who may serve a GPU afterwards (nanonet.backends.gate).
"""
