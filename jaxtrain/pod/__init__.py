"""The processes of a run: how they find each other, connect, stop together and detect failures."""
