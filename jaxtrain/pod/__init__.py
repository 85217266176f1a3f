"""Several processes as one: who they are, how they meet, stop together, and notice who is gone."""
