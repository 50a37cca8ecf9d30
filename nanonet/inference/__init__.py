"""Trained models: batched forward, scores, classifiers from disk, evaluate, predict, export.

Not here: anything that trains.
"""
