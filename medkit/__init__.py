"""medkit: medical models that come out the same twice.

The shortest way in is ``from medkit.trainer import keyed, stable_trainer, start_run``. Nothing is
imported here, so that the command line answers at once.
"""

__version__ = "0.1.0"
