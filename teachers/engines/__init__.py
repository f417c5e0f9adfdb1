"""Engines that run teachers: vLLM, OpenAI-compatible servers, cross-encoders, bi-encoders."""
