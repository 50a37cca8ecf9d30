"""The frozen teacher: an encoder tuned on the labels, the choice of a rule, soft labels for every text, their cache.

Not here: the online teacher, which trains beside its students (training/).
"""
