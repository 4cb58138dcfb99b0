"""What measured replies say together: means, relations with adherence, heads; numpy alone."""
