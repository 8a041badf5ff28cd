"""Planning: what a run will be, cost and need, before it starts."""
