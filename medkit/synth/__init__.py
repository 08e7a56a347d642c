"""Made-up hospitals whose truth is known."""
