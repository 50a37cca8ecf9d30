"""Texts and labels: readers, the draw of scarce labels, batches, and a corpus made of docstrings.

Import from the modules, so that reading a table does not load torch:

    problems  the one line of a fault: file, place, column, cure
    lines     the lines of a file, within limits
    formats   the rows of one file, each with the place it stands at
    folders   the tables of a folder
    labels    names, numbers and blanks
    memory    texts and labels in memory
    classes   class names from labels.json or a teacher, and --class-map
    hub       the splits of a Hugging Face dataset
    read      tables of texts and labels, checked
    soft_label_rows, soft_label_files   probabilities from files
    pydocs    the built-in corpus
    split     the draw of labels, cross-validation folds, rows set aside for testing
    prepare   a run's texts and labels, drawn and tokenised
    batches   token ids, padding and the batches of every step

Not here: models, and anything that needs one.
"""
