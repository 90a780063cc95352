"""What is compared: recipes, cells, trials, searches, plans."""
