"""What a GPU makes faster and leaves as it is: steps recorded once and replayed, and several nets side by side."""
