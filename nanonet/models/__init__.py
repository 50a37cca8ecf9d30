"""Pretrained models and tokenizers: found, loaded, taken apart; the CNN student as a Hugging Face model.

Not here: K students in one model (cohort/), trained classifiers with their texts (inference/).
"""
