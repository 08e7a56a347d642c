"""Acts at a moment of training: keys, resume points, logs."""
