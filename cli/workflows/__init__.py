"""Commands that run other commands: demo, reproduce."""
