"""The one part of students that knows the store: views exported, students trained, runs re-ranked, rows merged back."""
