"""Notebooks as jobs: started, watched, resumed, swept and reported. Never imports torch."""
