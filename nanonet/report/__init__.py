"""The results of a run: report.json, report.html and its figures.

Not here: running models; the pipeline passes logits and counts.
"""
