"""Patients to batches.

- :mod:`~medkit.data.ehr`: ``EHRDataModule``, encounters with a label
- :mod:`~medkit.data.survival`: ``SurvivalDataModule``, patients followed until an event
- :mod:`medkit.data.contract`: what the columns must be; :mod:`medkit.data.leakage`: the audit
- :mod:`medkit.data.long`: long tables of events to one row per stay
- :mod:`~medkit.data.loader`: ``keyed``, for anybody's DataModule or DataLoader
"""
