"""Irregular long tables of events to one row per stay, in a stream."""
