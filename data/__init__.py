"""Pictures for the sweeps: facts about the sets, .beton files written and read, views cut on the device."""
