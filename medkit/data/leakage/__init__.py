"""Ways in which held-out rows, or the outcome, get into the training, and the audit for them."""
