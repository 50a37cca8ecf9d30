"""The frozen teacher: an encoder tuned on the labels, the choice of a rule, soft labels for every text, their cache;
or a trained head, or files, in the place of encoder and rule (source.py).

Not here: the online teacher, which trains beside its students (training/).
"""
