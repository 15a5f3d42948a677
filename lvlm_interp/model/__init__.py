"""Open a vision-language model and see inside it."""
