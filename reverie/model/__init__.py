"""Parts of world models: encoders, decoders, heads and the recurrent latent dynamics."""
