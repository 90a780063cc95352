"""A cluster's head: MLflow's server and backup, checks, spot notices."""
