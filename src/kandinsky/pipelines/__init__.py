"""From a request to a result: small compositions of text encoder, denoiser and autoencoder."""
