"""Texts from a language model (Generation-Distillation): fine-tuning, sampling, filters.

Not here: labels for these texts; the teacher gives them in a training run.
"""
