"""retouch: image inpainting with diffusion models."""
