"""Asks a trained net why."""
