"""What is asked of a config or a run while nothing is trained: inspect, plan, status."""
