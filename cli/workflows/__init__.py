"""Commands made of other commands: demo, reproduce."""
