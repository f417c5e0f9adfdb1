"""Keep the engine full within the budget; figures and forecasts."""
