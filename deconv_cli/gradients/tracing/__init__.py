"""One forward and one backward pass, watched: which operation loses a gradient, and on which line."""
