"""A Hugging Face encoder turned into K stacked students, and back."""
