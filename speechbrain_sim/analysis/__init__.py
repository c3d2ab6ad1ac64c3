"""What a latent space looks like: arrays -> numbers."""
