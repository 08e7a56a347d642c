"""Asks a trained net why, and tests the answer before it is shown.

- :mod:`~medkit.saliency.attribution`: ``integrated_gradients``
- :mod:`~medkit.saliency.shapley`: ``shapley_values``; :mod:`~medkit.saliency.players`: a column
  and its indicator as one
- :mod:`~medkit.saliency.members`: ``attribute_members``, the same for a fold ensemble
- :mod:`~medkit.saliency.randomisation`: ``randomisation_test``; ``verdict.on(attribution)``
- :mod:`~medkit.saliency.similarity`: ``stability`` over folds and seeds, ``agreement``

Nets that take volumes, ``(B, 1, H, W, D)`` in HU:

- :mod:`~medkit.saliency.volume_net`: ``VolumeNet(net, window)``;
  :mod:`~medkit.saliency.volume_maps`: the ``VolumeMaps`` of it
- :mod:`~medkit.saliency.volumes`: ``integrated_gradients``, ``gradient_shap``,
  ``smooth_gradients``; :mod:`~medkit.saliency.occlusion`; :mod:`~medkit.saliency.cam`:
  ``grad_cam`` and ``attention``
- :mod:`~medkit.saliency.checks`: ``examine`` a method on a net; ``verdict.on(maps)``
- :mod:`~medkit.saliency.map_scores`: pointing game, overlap, likeness;
  :mod:`~medkit.saliency.removal`: deletion and insertion
- :mod:`~medkit.saliency.overlay`: ``save_montage``
"""
