"""MLflow as a projection of the store."""
