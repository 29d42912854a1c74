"""The lowest room: layers, distributions, transforms, optimizers. Imports nothing of ours."""
