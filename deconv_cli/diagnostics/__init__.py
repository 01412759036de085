"""Whether to believe a result: residuals, border effects, conditioning."""
