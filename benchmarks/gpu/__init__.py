"""What a GPU gives, in one table: `python -m benchmarks.gpu`."""
