"""The commands: ``fl-app``, which runs and sweeps, and ``fl-kit``, which is around them."""
