"""Numbers in, numbers with intervals out. NumPy, no torch.

- :mod:`~medkit.metrics.summary`: ``binary``, ``compared`` (a model and its rivals), ``by_group``,
  ``survival``: what a run files
- :mod:`~medkit.metrics.discrimination`, :mod:`~medkit.metrics.calibration`,
  :mod:`~medkit.metrics.thresholds`, :mod:`~medkit.metrics.benefit`: one model, two classes
- :mod:`~medkit.metrics.survival`, :mod:`~medkit.metrics.kaplan_meier`: times to an event
- :mod:`~medkit.metrics.detection`: FROC and CPM, of candidates in volumes
- :mod:`~medkit.metrics.comparison`, :mod:`~medkit.metrics.two_level`: is the difference real?
- :mod:`~medkit.metrics.spread`, :mod:`~medkit.metrics.decisions`,
  :mod:`~medkit.metrics.stability`, :mod:`~medkit.metrics.stability_steps`: over seeds
"""
