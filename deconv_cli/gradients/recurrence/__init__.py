"""Recurrent models: gradients through time, and by gate."""
