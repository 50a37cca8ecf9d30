"""What a run was worth: report.json, report.html and its figures.

Not here: measuring; the pipeline hands over logits and counts.
"""
