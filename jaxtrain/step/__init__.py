"""The state, the train step and the evaluation step: pure functions."""
