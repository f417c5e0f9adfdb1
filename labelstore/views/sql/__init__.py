"""The SQL of training views: a file for each step."""
