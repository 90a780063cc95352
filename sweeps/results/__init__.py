"""What finished trials say, in numbers: the paper's, ours, tests, claims."""
