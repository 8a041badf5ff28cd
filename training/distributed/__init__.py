"""The processes of a job: who they are, how they share a network, and how they stop together."""
