"""Asks a trained net why, and tests the answer before it is shown.

- :mod:`~medkit.saliency.attribution`: ``integrated_gradients``
- :mod:`~medkit.saliency.shapley`: ``shapley_values``; :mod:`~medkit.saliency.players`: a column
  and its indicator as one
- :mod:`~medkit.saliency.members`: ``attribute_members``, the same for a fold ensemble
- :mod:`~medkit.saliency.randomisation`: ``randomisation_test``; ``verdict.on(attribution)``
- :mod:`~medkit.saliency.similarity`: ``stability`` over folds and seeds, ``agreement``
"""
