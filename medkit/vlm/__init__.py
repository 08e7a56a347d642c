"""Image and text: models, packing, preferences and rewards."""
