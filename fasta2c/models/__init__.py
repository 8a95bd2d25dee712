"""Networks: encoders, action distributions, and the actor-critic made of them."""
