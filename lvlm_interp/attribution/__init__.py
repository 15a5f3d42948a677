"""Which of what the model was given an answer is owed to, and where in the picture."""
