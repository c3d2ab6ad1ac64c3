"""The explorer: a latent space in the browser, and the server behind the page."""
