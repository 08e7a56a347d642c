"""What learns: nets, LightningModules, and the baselines they must beat.

- :mod:`~medkit.models.classifier`: ``LitClassifier``, two classes, warm-up and decay to zero
- :mod:`~medkit.models.tabular`: ``warm_classifier``, the default for tables: starts as logistic
  regression
- :mod:`~medkit.models.ensemble`: ``fit_folds``, a net per fold; ``FoldEnsemble``
- :mod:`~medkit.models.baseline`: logistic regression and gradient boosting
- :mod:`~medkit.models.survival`: ``LitCox``
- :mod:`~medkit.models.detect`: a classifier of patches run over a whole volume
- :mod:`~medkit.models.saved`: ``load``, the model of a run folder; :mod:`~medkit.models.predict`
"""
