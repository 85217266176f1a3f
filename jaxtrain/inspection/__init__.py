"""Commands that do not train: inspect, plan, status."""
