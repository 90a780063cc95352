"""Command line of sweeps: options, live view, status."""
