"""Jobs that read finished runs and compare them with the paper; none starts a run."""
