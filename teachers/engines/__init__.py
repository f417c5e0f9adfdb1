"""Models that answer: vLLM, OpenAI-compatible servers, Ray, cross-encoders, bi-encoders."""
