"""How a picture larger than memory is cut into blocks, solved and put together."""
