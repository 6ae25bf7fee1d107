"""All objectives under conditions of data that differ in one thing: who wins where."""
