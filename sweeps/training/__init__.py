"""One trial, from its first step to its result: torch, without Ray, Optuna or MLflow."""
