"""Texts and labels: readers, the draw of scarce labels, batches, and a corpus made of docstrings.

Import from the modules, so that reading a table does not load torch:

    formats   the rows of one file, each with the place it stands at
    hub       the splits of a Hugging Face dataset
    read      tables of texts and labels, checked
    pydocs    the built-in corpus
    split     the draw of labels, cross-validation, the held-out fifth
    batches   token ids, padding and the batches of every step
"""
