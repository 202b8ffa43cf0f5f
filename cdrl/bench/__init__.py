"""What a step costs: counted exactly, and measured beside the plain formulation in the same run."""
