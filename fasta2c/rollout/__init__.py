"""The rollout: the T x E tensors, and the collector that fills them."""
