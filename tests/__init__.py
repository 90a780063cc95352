"""The tests. Each folder has the name of the room or package that it tests."""
