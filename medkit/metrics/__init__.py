"""Numbers in, numbers with intervals out. NumPy, no torch."""
