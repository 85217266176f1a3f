"""What a program costs: operations, memory, messages, by compiler and by count."""
