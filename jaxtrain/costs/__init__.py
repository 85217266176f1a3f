"""The cost of a program: operations, memory and communication, counted or from the compiler."""
