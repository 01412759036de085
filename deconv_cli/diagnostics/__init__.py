"""Whether to trust a result: residuals, effects of the boundary, conditioning, the choice of λ, predicted errors."""
