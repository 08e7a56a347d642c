"""Patients to batches."""
