"""Point-spread functions of microscopes, computed from their optics."""
