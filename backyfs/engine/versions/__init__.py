"""Remove, forget, compare and measure versions."""
