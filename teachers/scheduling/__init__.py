"""Keep the engine full within the budget, and compute figures and forecasts."""
