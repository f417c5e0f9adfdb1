"""The fast forward on a CPU, behind one door."""
