"""Training: the state, the loop that knows no cluster, checkpoints, and the Ray Train run around them."""
