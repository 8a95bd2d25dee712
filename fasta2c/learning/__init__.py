"""Learning: advantages, loss, optimizers, and the learner that makes one update of them."""
