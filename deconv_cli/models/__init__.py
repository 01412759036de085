"""Trained models from files: read safely, their layers and their classes."""
