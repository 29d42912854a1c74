"""Acting by imagining: rollouts inside a world model, returns, and the losses of what acts."""
