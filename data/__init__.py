"""Pictures for the sweeps: facts about data sets, .beton files, and training and test views."""
