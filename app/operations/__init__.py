"""What an operator or integrator can do, whichever way it is asked for."""
