"""What learns: nets, LightningModules, and the baselines they must beat."""
